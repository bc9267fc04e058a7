"""Outputs in folders: a first feature set, and a further one of the same rows."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.chaos.comparison import check_history, check_report
from tests.faults.chaos.kinds.corpus import ROWS_PER_PART, model
from tests.faults.chaos.kinds.kind import OBJECT_STORES, Inputs, varve
from tests.faults.chaos.stores import Store
from varve import Job
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

FIRST = {"e": {"pool": "mean"}, "c": {"pool": "cls", "layers": "all"}}
FURTHER = {"largest": {"pool": "max"}}


def rows(storage: Storage) -> pa.Table:
    """All rows of an output, in the order of its parts."""
    names = sorted(entry.name for entry in storage.list("data"))
    return pa.concat_tables(pq.read_table(pa.BufferReader(storage.read(name) or b"")) for name in names)


def undisturbed(inputs: Inputs, name: str = "") -> pa.Table:
    """The rows of the first set, or of "/sets/largest", by one process without Ray."""
    if ("rows", name) not in inputs.results:
        from tests.reference_run import rows_of  # imports the encoder, which indexes do not need

        job = _job(inputs, str(inputs.folder / "undisturbed"), FURTHER if name else FIRST)
        inputs.results["rows", name] = rows_of(Job.parse(job))
    return inputs.results["rows", name]


def _job(inputs: Inputs, path: str, features: dict) -> dict:
    docs = inputs.folder / "docs"
    if not docs.exists():
        inputs.corpus.write(docs)
    job = {"source": {"dataset": str(docs), "text": "text"}, "model": model(), "features": features}
    return {**job, "output": {"path": path, "rows_per_part": ROWS_PER_PART}}


def commands(inputs: Inputs, path: str) -> list[list[str]]:
    """Of the first set, and of the further one."""
    further = {**_job(inputs, path, FURTHER), "output": {"path": path, "set": "largest"}}
    return [varve("embed", str(inputs.write_job(job)), "--json") for job in (_job(inputs, path, FIRST), further)]


def _keys(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))


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
            found = rows(storage)
            keys, expected_keys = _keys(found), _keys(expected)
            assert keys == expected_keys, f"lost: {sorted({*expected_keys} - {*keys})}; {len(keys)} rows are there"
            assert found.equals(expected), f"{storage.uri} differs from an undisturbed run"
            manifest = read_manifest(storage)
            assert manifest is not None, f"{storage.uri} has no manifest"
            assert manifest.num_rows == len(expected), f"the manifest has {manifest.num_rows} rows"
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
