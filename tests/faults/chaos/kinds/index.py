"""Search indexes of one output, of each target."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.faults.chaos.kinds.kind import OBJECT_STORES, Inputs, run_undisturbed, varve
from tests.faults.chaos.stores import Store
from tests.index_sources import clustered
from tests.outputs import column, write_output
from varve.indexing.open_target import find_index
from varve.storage.object_store import Storage

# Name of a kind → types of its index; "" is that of the target itself.
INDEXES = {
    "npy": ("",),
    "fbin": ("",),
    "faiss": ("IVF64,SQ8", "HNSW16,SQ8", "Flat"),
    "usearch": ("f32",),
    "lance-index": ("",),
    "ndjson": ("",),
    "postgresql": ("hnsw",),
    "qdrant": ("hnsw",),
}
BYTE_EQUAL = ("npy", "fbin", "faiss", "ndjson")
ROWS, WIDTH, ROWS_PER_PART = 6_000, 32, 150
_ERRORS = (7, 2001, 2002)
_RECORDS = {"_varve/manifest.json", "_varve/index.json", "_varve/check"}  # they name the address


def source(inputs: Inputs) -> str:
    """The output, which is written once."""
    if "source" not in inputs.results:
        kept = {"doc_id": [f"doc-{row}" for row in range(ROWS)]}
        features = {column("embedding", WIDTH, normalize=True): clustered(ROWS, WIDTH)}
        path = inputs.folder / "source"
        options = {"rows_per_part": ROWS_PER_PART, "shards": [2000, 0, ROWS - 2000], "errors": _ERRORS}
        inputs.results["source"] = write_output(path, features, kept, **options)
    return inputs.results["source"]


def command(inputs: Inputs, to: str, kind: str) -> list[str]:
    options = ["--key", "doc_id", "--recall", "0.5", *(["--kind", kind] if kind else [])]
    return varve("index", source(inputs), "--to", to, *options)


def content(to: str) -> Any:
    """What a published index holds: hashes of its files, or all its rows in the order of their positions.

    Raises:
        AssertionError: it is not published, not whole, or has files that are none of its own.
    """
    found = find_index(to)
    assert found is not None, f"{to} is not published"
    failures = found.target.verify(found.record)
    assert not failures, failures
    target, _, address = to.partition(":")
    if target in BYTE_EQUAL:
        storage = Storage(address)
        names = {entry.name for entry in storage.list("")} - _RECORDS
        assert names == set(found.record.files), names ^ set(found.record.files)
        return {name: hashlib.sha256(storage.read(name) or b"").hexdigest() for name in sorted(names)}
    with found.open() as searcher:
        positions = np.arange(found.record.request.num_vectors)
        rows, vectors = searcher.rows(positions), searcher.dense_at(positions)
    return rows.select(["position", "shard", "row", "doc_id"]), vectors


def is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one == other
    (rows, vectors), (other_rows, other_vectors) = one, other
    return rows.equals(other_rows) and (vectors is None or np.array_equal(vectors, other_vectors))


@dataclass
class IndexWork:
    """See `Work`."""

    to: str
    expected: Any
    commands: list[list[str]] = field(default_factory=list)

    def write(self, draw: Random) -> None:
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        del folder
        assert is_equal(content(self.to), self.expected), f"{self.to} differs from the undisturbed build"


@dataclass(frozen=True)
class IndexKind:
    """See `Kind`."""

    name: str
    has_writer: bool = False
    uses_ray: bool = False
    pause_s: float = 0.6

    @property
    def stores(self) -> tuple[str, ...]:
        if self.name in {"postgresql", "qdrant"}:
            return (self.name,)
        return ("disk", "ceph", "seaweed") if self.name == "lance-index" else ("disk", *OBJECT_STORES)

    def begin(self, store: Store, inputs: Inputs, draw: Random) -> IndexWork:
        kind = draw.choice(INDEXES[self.name])
        if self.name in {"postgresql", "qdrant"}:
            to, reference = (f"{self.name}://{store.new_address()}" for _ in range(2))
        else:
            target = self.name.removesuffix("-index")
            to, reference = f"{target}:{store.new_address()}", f"{target}:{inputs.folder}/{self.name}-{kind}"
        if (self.name, kind) not in inputs.results:
            run_undisturbed(command(inputs, reference, kind))
            inputs.results[self.name, kind] = content(reference)
        return IndexWork(to, inputs.results[self.name, kind], [command(inputs, to, kind)])
