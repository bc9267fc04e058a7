"""Features of lake tables: in a table of their own (Iceberg, Delta), or as columns of the source."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from tests.faults.chaos.kinds.corpus import RESERVE, ROWS, ROWS_PER_PART, SHARDS, Corpus, model
from tests.faults.chaos.kinds.folder import undisturbed
from tests.faults.chaos.kinds.kind import Inputs, varve
from tests.faults.chaos.stores import Store
from tests.lake import backend_delta
from tests.lake.backends import Backend, rows
from varve.lake.text_hash import HASH_TYPE, hash_texts

TABLES = ("iceberg", "delta", "lance", "iceberg-columns", "delta-columns")
_FEATURE = "e"
_APPENDED = 5  # rows of one change
_TRIES = 10  # of a change that conflicts with a commit of the job


class DeltaBackend(backend_delta.Backend):
    """A writer that knows nothing of the columns of features."""

    def append(self, rows: pa.Table) -> None:
        write_deltalake(self.uri, rows, mode="append", schema_mode="merge")

    def update(self, rows: pa.Table) -> None:
        merge = DeltaTable(self.uri).merge(rows, "s.doc_id = t.doc_id", source_alias="s", target_alias="t")
        merge.when_matched_update({"lang": "s.lang", "body": "s.body"}).execute()


def vectors(inputs: Inputs) -> dict[str, np.ndarray]:
    """Text → its vector in the undisturbed run."""
    if "vectors" not in inputs.results:
        found = {}
        table = undisturbed(inputs)
        for shard, row, vector in zip(*(table[name].to_pylist() for name in ("shard", "row", _FEATURE)), strict=True):
            found[inputs.corpus.texts[shard::SHARDS][row]] = np.array(vector, np.float32)
        inputs.results["vectors"] = found
    return inputs.results["vectors"]


def documents(corpus: Corpus, keys: range) -> pa.Table:
    """Rows of a source; the text of a key is that of its number in the corpus."""
    table = rows(keys)
    return table.set_column(2, "body", pa.array([corpus.texts[key] for key in keys]))


@dataclass
class TableWork:
    """See `Work`."""

    inputs: Inputs
    backend: Backend
    in_place: bool
    commands: list[list[str]] = field(default_factory=list)
    unused: list[int] = field(default_factory=lambda: list(range(ROWS, ROWS + RESERVE)))
    written: dict[int, str] = field(default_factory=dict)  # key → text, by the writers' commits

    def write(self, draw: Random) -> None:
        changes: list[Callable[[Random], None]] = [self._append, self._update, self._delete]
        change = draw.choice(changes if self.in_place else [*changes, self._compact])
        for _ in range(_TRIES - 1):
            with suppress(Exception):  # each library has an error of its own for a conflict
                change(draw)
                return
        change(draw)

    def _append(self, draw: Random) -> None:
        del draw
        taken, self.unused = self.unused[:_APPENDED], self.unused[_APPENDED:]
        if taken:
            added = documents(self.inputs.corpus, range(taken[0], taken[-1] + 1))
            self.backend.append(added)
            self._note(added)

    def _update(self, draw: Random) -> None:
        """Rows take the texts of others, which the corpus has too."""
        keys = sorted({*draw.sample(range(ROWS), 4)} & {*self.written})
        texts = [draw.choice(self.inputs.corpus.texts) for _ in keys]
        if keys:
            changed = rows(keys).set_column(2, "body", pa.array(texts))
            self.backend.update(changed)
            self._note(changed)

    def _delete(self, draw: Random) -> None:
        if keys := sorted({*draw.sample(range(ROWS), 3)} & {*self.written}):
            self.backend.delete(keys)
            for key in keys:
                del self.written[key]

    def _compact(self, draw: Random) -> None:
        del draw
        self.backend.compact()

    def create(self) -> None:
        """Write the source by two commits."""
        for commit, keys in ((self.backend.create, range(ROWS // 2)), (self.backend.append, range(ROWS // 2, ROWS))):
            added = documents(self.inputs.corpus, keys)
            commit(added)
            self._note(added)

    def _note(self, table: pa.Table) -> None:
        """What a commit has written."""
        self.written |= dict(zip(table["doc_id"].to_pylist(), table["body"].to_pylist(), strict=True))

    def check(self, folder: Path) -> None:
        del folder
        source = self.backend.read(self.backend.address).sort_by("doc_id")
        found = source if self.in_place else self.backend.read(self.backend.features_address).sort_by("doc_id")
        keys = source["doc_id"].to_pylist()
        assert keys == sorted(self.written), f"commits of the writer: {_differences(sorted(self.written), keys)}"
        changed = [key for key, text in zip(keys, source["body"].to_pylist(), strict=True) if text != self.written[key]]
        assert not changed, f"commits of the writer: other texts in rows {changed}"
        assert found["doc_id"].to_pylist() == keys, _differences(keys, found["doc_id"].to_pylist())
        hashes = found[f"{_FEATURE}_hash" if self.in_place else "text_hash"].cast(HASH_TYPE).to_pylist()
        assert hashes == hash_texts([source["body"]]).to_pylist(), "hashes of texts differ"
        expected = vectors(self.inputs)
        for key, text, vector in zip(keys, source["body"].to_pylist(), found[_FEATURE].to_pylist(), strict=True):
            assert vector is not None, f"row {key} has no vector"
            assert np.array_equal(np.array(vector, np.float32), expected[text]), f"row {key} has another vector"


def _differences(keys: list[int], found: list[int]) -> str:
    lost, doubled = sorted({*keys} - {*found}), len(found) - len({*found})
    return f"lost: {lost}; doubled: {doubled}; not in the source: {sorted({*found} - {*keys})}"


@dataclass(frozen=True)
class TableKind:
    """See `Kind`."""

    name: str
    has_writer: bool = True
    uses_ray: bool = True
    pause_s: float = 1.0

    @property
    def stores(self) -> tuple[str, ...]:
        return ("disk", "seaweed") if self.name.startswith("iceberg") else ("disk", "seaweed", "ceph")

    def begin(self, store: Store, inputs: Inputs, draw: Random) -> TableWork:
        del draw
        vectors(inputs)
        name, _, columns = self.name.partition("-")
        root = store.new_address()
        module: Any = import_module(f"tests.lake.backend_{name}")
        backend: Any = DeltaBackend(root) if self.name == "delta-columns" else module.Backend(root)
        is_lance = name == "lance"
        in_place = is_lance or bool(columns)
        output = {"table": backend.address if in_place else backend.features_address, "rows_per_part": ROWS_PER_PART}
        job = {
            "source": {"table": backend.address, "text": "body", **({} if is_lance else {"key": "doc_id"})},
            "model": model(),
            "features": {_FEATURE: {"pool": "mean"}},
            "output": output | ({"columns": "rewrite"} if columns else {}),
        }
        work = TableWork(inputs, backend, in_place, [varve("embed", str(inputs.write_job(job)), "--json")])
        work.create()
        return work
