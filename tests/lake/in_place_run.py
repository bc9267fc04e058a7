"""Runs of features in place without a model: the vector of a row is a function of its text."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from varve.backfill.in_place.diff import select_in_place
from varve.backfill.in_place.lance_columns import LanceColumns
from varve.backfill.in_place.rewritten_columns import RewrittenColumns
from varve.config.table_address import parse_table_address
from varve.engine.parallel import Spread, in_threads
from varve.lake.lance.lance_table import LanceTable
from varve.lake.open_table import open_table
from varve.lake.table import Table
from varve.lake.text_hash import HASH_TYPE, hash_texts
from varve.output.part_file import Part, part_name, read_part, write_part
from varve.output.part_table import PartTable
from varve.ranges import Range
from varve.source.row_selection import RowSelection
from varve.source.table_source import TableReader
from varve.storage.object_store import Storage

WIDTH = 4
ROWS_PER_PART = 4
VECTOR = pa.list_(pa.float32(), WIDTH)


def vector(text: str | None, name: str) -> list[float] | None:
    if text is None:
        return None
    digest = hashlib.sha256(f"{name} {text}".encode()).digest()
    return np.frombuffer(digest[: 4 * WIDTH], np.uint32).astype(np.float32).tolist()


@dataclass
class InPlaceRun:
    """One command on a dataset; each call of a method repeats what a driver does.

    Attributes:
        backend: of the table, see `backends.Backend`.
        folder: of outputs.
        features: names of the feature columns.
        on: name of a step → function that is called before it.
        encoded: rows, over all calls.
        spread: runs work on files.
    """

    backend: Any
    folder: Path = Path()
    features: tuple[str, ...] = ("embedding",)
    on: dict = field(default_factory=dict)
    encoded: int = 0
    spread: Spread = in_threads

    @property
    def columns(self) -> LanceColumns | RewrittenColumns:
        feature_set = hashlib.sha256(repr(self.features).encode()).hexdigest()
        table: Any = open_table(parse_table_address(self.backend.address))
        kind: Any = LanceColumns if isinstance(table, LanceTable) else RewrittenColumns
        return kind(table, feature_set, self.features, ("body",))

    def go(self) -> dict[str, int]:
        """Counts of rows, as in a selection; empty if there was nothing to do."""
        table, columns = self.columns.table, self.columns
        columns.prepare(pa.schema([(name, VECTOR) for name in self.features]))
        pin, state = table.pin(None), columns.state()
        if state and state.source_version == pin.version:
            return {}
        assert pin.version is not None
        version = columns.protect(pin.version)
        since = state.source_version if state else None
        run = hashlib.sha256(f"{columns.feature_set} {pin.uuid} {since} {version}".encode()).hexdigest()
        folder = self.folder if isinstance(columns, LanceColumns) else columns.table.folder
        storage = Storage(f"{folder}/{run[:16]}")
        selection = RowSelection.load(storage)
        if selection is None:
            self.step("select")
            made = select_in_place(table, version, since, columns.own.hash, ("body",), storage, self.spread)
            selection = made.save()
        parts = self.parts(table, version, selection)
        self.step("publish")
        columns.publish(storage, parts, selection, version, run, self.spread_in_steps)
        return dict(selection.counts)

    def step(self, name: str) -> None:
        if name in self.on:
            self.on[name]()

    def spread_in_steps(self, work, items):
        """The step is the name of the function."""
        if items:
            self.step(work.__name__)
        return self.spread(work, items)

    def parts(self, table: Table, version: int, selection: RowSelection) -> PartTable:
        files = {file.path: file for file in table.files(version)}
        chosen = tuple(files[each.path] for each in selection.files)
        reader = TableReader(table, version, chosen, ("body",), ("body",), selection)
        parts = []
        for shard in range(len(chosen)):
            read = list(reader.read(shard, 0))
            rows = pa.concat_tables(read)
            for start in range(0, len(rows), ROWS_PER_PART):
                cell = Range(shard, start, min(start + ROWS_PER_PART, len(rows)))
                self.step("part")
                parts.append(self.part(selection.storage, rows, cell))
        return PartTable.of(parts)

    def part(self, storage: Storage, rows: pa.Table, cell: Range) -> Part:
        if storage.read(part_name(cell)) is not None:
            return read_part(storage, cell)
        return write_part(storage, cell, self.encode(rows, cell), "f" * 64)

    def encode(self, rows: pa.Table, cell: Range) -> pa.Table:
        rows = rows.slice(cell.start, cell.num_rows)
        self.encoded += len(rows)
        texts = rows["body"].to_pylist()
        features = {name: pa.array([vector(text, name) for text in texts], VECTOR) for name in self.features}
        return pa.table(
            {
                **features,
                "text_hash": rows["text_hash"],
                "num_tokens": pa.array([None if text is None else len(text) for text in texts], pa.int32()),
                "truncated": pa.array([None if text is None else False for text in texts]),
                "error": pa.array(["null text" if text is None else None for text in texts], pa.string()),
                "shard": pa.array([cell.shard] * len(rows), pa.int32()),
                "row": pa.array(range(cell.start, cell.stop)),
            }
        )


def missing(backend: Any, features: tuple[str, ...] = ("embedding",)) -> list[int]:
    """Keys of rows without features; fails if a row has other features than those of its text."""
    rows = backend.read(backend.address)
    hashes = rows[f"{features[0]}_hash"].cast(HASH_TYPE)
    left = []
    expected = hash_texts([rows["body"]]).to_pylist()
    for at, (key, text) in enumerate(zip(rows["doc_id"].to_pylist(), rows["body"].to_pylist(), strict=True)):
        if hashes[at].as_py() != expected[at]:
            left.append(key)
            continue
        for name in features:
            assert rows[name][at].as_py() == vector(text, name), (key, name)
        assert rows[f"{features[0]}_error"][at].as_py() == ("null text" if text is None else None)
    assert len(set(rows["doc_id"].to_pylist())) == len(rows)
    return left
