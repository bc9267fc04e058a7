"""Outputs in folders: a first feature set, and a further one of the same rows."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.chaos.comparison import check_history, check_report
from tests.faults.chaos.kinds.corpus import ROWS_PER_PART, model
from tests.faults.chaos.kinds.kind import OBJECT_STORES, Inputs, run_undisturbed, varve
from tests.faults.chaos.stores import Store
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

FIRST = {"e": {"pool": "mean"}, "c": {"pool": "cls", "layers": "all"}}
FURTHER = {"largest": {"pool": "max"}}


def parts(storage: Storage) -> dict[str, pa.Table]:
    """Name → rows of each part of an output."""
    names = sorted(entry.name for entry in storage.list("data"))
    return {name: pq.read_table(pa.BufferReader(storage.read(name) or b"")) for name in names}


def undisturbed(inputs: Inputs, name: str = "") -> dict[str, pa.Table]:
    """The parts of the first set, or of "/sets/largest"."""
    if ("folder", name) not in inputs.results:
        path = str(inputs.folder / "undisturbed")
        of_first, of_further = commands(inputs, path)
        if name:
            undisturbed(inputs)
        run_undisturbed(of_further if name else of_first)
        inputs.results["folder", name] = parts(Storage(f"{path}{name}"))
    return inputs.results["folder", name]


def commands(inputs: Inputs, path: str) -> list[list[str]]:
    """Of the first set, and of the further one."""
    docs = inputs.folder / "docs"
    if not docs.exists():
        inputs.corpus.write(docs)
    job = {"source": {"dataset": str(docs), "text": "text"}, "model": model(), "features": FIRST}
    first = {**job, "output": {"path": path, "rows_per_part": ROWS_PER_PART}}
    further = {**job, "features": FURTHER, "output": {"path": path, "set": "largest"}}
    return [varve("embed", str(inputs.write_job(content)), "--json") for content in (first, further)]


@dataclass
class FolderWork:
    """See `Work`."""

    inputs: Inputs
    path: str
    sets: tuple[str, ...]
    commands: list[list[str]] = field(default_factory=list)

    def write(self, draw: Random) -> None:
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        for name in self.sets:
            storage, expected = Storage(f"{self.path}{name}"), undisturbed(self.inputs, name)
            found = parts(storage)
            assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
            for part, rows in expected.items():
                assert found[part].equals(rows), f"{part} differs from the undisturbed run"
            manifest = read_manifest(storage)
            assert manifest is not None, f"{storage.uri} has no manifest"
            assert manifest.num_rows == sum(map(len, expected.values())), f"the manifest has {manifest.num_rows} rows"
            assert manifest.canary["passed"], manifest.canary
            check_history(storage)
        check_report(self.path, folder)


@dataclass(frozen=True)
class FolderKind:
    """See `Kind`."""

    with_set: bool
    stores: tuple[str, ...] = ("disk", *OBJECT_STORES)
    has_writer: bool = False
    uses_ray: bool = True
    pause_s: float = 1.0

    def begin(self, store: Store, inputs: Inputs, draw: Random) -> FolderWork:
        del draw
        path, sets = store.new_address(), ("", "/sets/largest") if self.with_set else ("",)
        for name in sets:
            undisturbed(inputs, name)
        return FolderWork(inputs, path, sets, commands(inputs, path)[: len(sets)])
