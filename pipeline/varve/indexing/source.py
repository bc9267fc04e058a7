"""A feature of a finished output as the source of an index: positions, and the vectors of each part.

Knows nothing of targets. Invariants: position p is the p-th vector in the manifest's order of parts, without rows that
have an error, so every worker knows the positions of its part without reading the others; equal outputs give equal
positions. Safe to pickle: it holds addresses and counts, no vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import SPAN_COLUMNS, Column
from varve.errors import JobError, RunError
from varve.indexing.metric import Metric, have_unit_length
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD, IndexRows, SparseVectors, Vectors, concatenate, take
from varve.output.run_output import Output
from varve.output.vectors import list_offsets, read_sparse, read_vector_lists, read_vectors

DENSE, SPARSE, LATE = "dense", "sparse", "late"
_KIND_OF_FORM = {"vector": DENSE, "windows": DENSE, "chunks": DENSE, "sparse": SPARSE, "late": LATE, "clusters": LATE}
_SAMPLE_PARTS = 64
_UNIT_SAMPLE, _UNIT_PARTS = 1000, 2
_BLOCK_BYTES = 2**22  # of decoded vectors that are in memory at once, about
_COMPARED_ROWS = 2048  # that `neighbours.nearest` compares at once
_TOKENS_PER_ROW = 64  # of late interaction and of sparse vectors, about


@dataclass(frozen=True)
class IndexSource:
    """A feature of a finished output.

    Attributes:
        output: the finished run.
        column: definition of the feature.
        metric: how its vectors are compared.
        columns: kept columns that `ids` holds.
        starts: (parts + 1,) position of the first vector of each part; the last value is the number of vectors.
    """

    output: Output
    column: Column
    metric: Metric
    columns: tuple[str, ...]
    starts: NDArray[np.int64]

    @classmethod
    def open(cls, output: Output, feature: str | None = None, columns: Sequence[str] = ()) -> Self:
        """Open a feature of an output.

        Args:
            output: of a finished run.
            feature: name of the column; None: the only feature that can be searched, or the only dense one.
            columns: kept columns of the run.

        Raises:
            JobError: there is no such feature or column, or its vectors cannot be searched.
            RunError: the output cannot be read.
        """
        column = find_feature(output, feature)
        if unknown := [name for name in columns if name not in output.kept_columns]:
            listed = ", ".join(output.kept_columns) or "none"
            msg = f"{output.storage.uri} has no kept column {unknown[0]!r}; it has: {listed}"
            raise JobError(msg)
        own = (POSITION, ITEM) if column.form in SPAN_COLUMNS else (POSITION,)
        if taken := [name for name in columns if name in own]:
            msg = f"the kept column {taken[0]!r} has the name of a column of the index. Rename it in the job file"
            raise JobError(msg)
        output = output.led_by(column.name)
        source = cls(output, column, Metric("dot"), tuple(columns), _count_vectors(output, column))
        return replace(source, metric=_find_metric(source))

    @property
    def kind(self) -> str:
        """dense, sparse or late."""
        return _KIND_OF_FORM[self.column.form]

    @property
    def num_vectors(self) -> int:
        """Number of positions."""
        return int(self.starts[-1])

    @property
    def num_parts(self) -> int:
        """Number of parts of the output; a part may have no vectors."""
        return len(self.starts) - 1

    @property
    def width(self) -> int:
        """Dimensions of a vector; of a sparse one, the size of the vocabulary."""
        return self.column.width

    @property
    def has_items(self) -> bool:
        """Whether a row of the output may hold several vectors of the index: windows or chunks."""
        return self.column.form in SPAN_COLUMNS

    def read(self, part: int, columns: Sequence[str] | None = None) -> IndexRows:
        """The vectors of one part.

        Args:
            part: its number in the manifest's order.
            columns: kept columns of the run to read instead of `self.columns`.

        Raises:
            RunError: the part is missing or damaged, or has another number of vectors than its record says.
        """
        kept = list(self.columns if columns is None else columns)
        table = self.output.read(self.output.manifest.parts[part], [*self._stored_names, SHARD, ROW, *kept])
        table = self._without_nulls(table)
        vectors, rows_of, items = self._decode(table)
        first, expected = int(self.starts[part]), int(self.starts[part + 1] - self.starts[part])
        self._check_count(part, len(rows_of))
        ids = {POSITION: pa.array(np.arange(first, first + expected, dtype=np.int64))}
        described = table.select([SHARD, ROW, *kept]).take(pa.array(rows_of))
        ids |= {SHARD: described[SHARD], ROW: described[ROW]}
        ids |= {ITEM: pa.array(items)} if self.has_items else {}
        return IndexRows(part, first, vectors, pa.table({**ids, **{name: described[name] for name in kept}}))

    def blocks(self, part: int) -> Iterator[tuple[int, Vectors]]:
        """(position of the first vector, vectors) of one part, a few rows at a time; reads no other columns.

        Raises:
            RunError: as `read`.
        """
        first = int(self.starts[part])
        for table in self.output.batches(self.output.manifest.parts[part], self._stored_names, self._block_rows):
            vectors, _, _ = self._decode(self._without_nulls(table))
            if len(vectors):
                yield first, vectors
            first += len(vectors)
        self._check_count(part, first - int(self.starts[part]))

    def blocks_of(self, positions: range) -> Iterator[tuple[int, Vectors]]:
        """(position of the first vector, vectors) of consecutive positions; reads only the parts that hold them.

        Raises:
            RunError: as `read`.
        """
        last_part = int(np.searchsorted(self.starts, positions.stop))
        for part in range(int(self.part_of(np.array(positions.start))), last_part) if positions else ():
            for first, block in self.blocks(part):
                start, stop = max(positions.start - first, 0), min(positions.stop - first, len(block))
                if start < stop:
                    yield first + start, take(block, slice(start, stop))

    @property
    def _stored_names(self) -> list[str]:
        """Columns that hold the vectors; the first one is null in rows without."""
        return [*self.column.stored_names[: 2 if self.kind == SPARSE or self.column.scale_name else 1]]

    @property
    def _block_rows(self) -> int:
        bytes_per_row = {DENSE: 4 * self.width, LATE: 4 * self.width * _TOKENS_PER_ROW, SPARSE: 8 * _TOKENS_PER_ROW}
        rows = int(np.clip(_BLOCK_BYTES // bytes_per_row[self.kind], 64, 8192))
        return rows if rows < _COMPARED_ROWS else rows // _COMPARED_ROWS * _COMPARED_ROWS

    def _without_nulls(self, table: pa.Table) -> pa.Table:
        cells = table[self._stored_names[0]]
        return table.filter(cells.is_valid()) if cells.null_count else table

    def _check_count(self, part: int, num_vectors: int) -> None:
        if num_vectors != (expected := int(self.starts[part + 1] - self.starts[part])):
            name = self.output.manifest.parts[part].name
            msg = f"{self.output.storage.uri}/{name} has {num_vectors} vectors of {self.column.name}, expected "
            raise RunError(msg + f"{expected}. See `varve verify`")

    def _decode(self, table: pa.Table) -> tuple[Vectors, NDArray[np.int64], NDArray[np.int32] | None]:
        """(vectors, row of the table of each vector, number of each vector in its row)."""
        rows = np.arange(len(table))
        if self.kind == SPARSE:
            return SparseVectors(*read_sparse(table, self.column)), rows, None
        if self.kind == LATE:
            return read_vector_lists(table, self.column), rows, None
        if not self.has_items:
            return read_vectors(table, self.column), rows, None
        lists = read_vector_lists(table, self.column)
        lengths = np.diff(lists.offsets)
        items = np.arange(len(lists.values)) - np.repeat(lists.offsets[:-1], lengths)
        return lists.values, np.repeat(rows, lengths), items.astype(np.int32)

    def part_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) number of the part that holds each position."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def sample_positions(self, num_vectors: int, seed: int, max_parts: int | None = _SAMPLE_PARTS) -> NDArray[np.int64]:
        """Ascending positions of a random sample; a function of the arguments and the source.

        Args:
            num_vectors: positions; fewer are returned if the parts hold fewer.
            seed: of the random choice.
            max_parts: from which they are; None: as many as hold the positions, and at least `_SAMPLE_PARTS`.
        """
        random = np.random.default_rng(seed)
        counts = np.diff(self.starts)
        filled = np.flatnonzero(counts)
        if max_parts is None:
            filled = random.permutation(filled)
            held = np.cumsum(counts[filled])
            parts = filled[: max(_SAMPLE_PARTS, int(np.searchsorted(held, num_vectors)) + 1)]
        else:
            parts = random.choice(filled, min(max_parts, len(filled)), replace=False)
        parts = np.sort(parts)
        ranges = [np.arange(int(self.starts[part]), int(self.starts[part + 1])) for part in parts]
        candidates = np.concatenate(ranges) if ranges else np.zeros(0, np.int64)
        return np.sort(random.choice(candidates, min(num_vectors, len(candidates)), replace=False))

    def at(self, positions: NDArray[np.int64]) -> Vectors:
        """The vectors of N positions, in their order; reads the parts that hold them, block by block.

        Raises:
            RunError: a part is missing or damaged.
        """
        found: list[Vectors] = []
        places: list[NDArray[np.int64]] = []
        for part in np.unique(self.part_of(positions)):
            last = positions[self.part_of(positions) == part].max()
            for first, block in self.blocks(int(part)):
                inside = np.flatnonzero((positions >= first) & (positions < first + len(block)))
                if len(inside):
                    found.append(take(block, positions[inside] - first))
                    places.append(inside)
                if first + len(block) > last:
                    break
        return take(concatenate(found), np.argsort(np.concatenate(places))) if found else self._no_vectors()

    def _no_vectors(self) -> Vectors:
        names = self._stored_names
        return self._decode(pa.schema([self.output.schema.field(name) for name in names]).empty_table())[0]

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, width) float32 vectors of a dense feature at N positions, in their order; see `at`."""
        vectors = self.at(positions)
        assert isinstance(vectors, np.ndarray)
        return vectors


def find_feature(output: Output, name: str | None) -> Column:
    """The feature column of this name; None: the only one that can be searched, or the only dense one.

    Raises:
        JobError: there is none, or several.
    """
    searchable = {c.name: c for c in output.features.values() if c.form in _KIND_OF_FORM}
    if name is None:
        dense = [c for c in searchable.values() if _KIND_OF_FORM[c.form] == DENSE]
        choice = dense or list(searchable.values())
        if len(choice) == 1:
            return choice[0]
        msg = f"{output.storage.uri} has {len(choice)} features that can be searched: choose one as feature"
        raise JobError(f"{msg} ({', '.join(searchable)})" if searchable else msg)
    if name not in searchable:
        listed = ", ".join(searchable) or "none"
        reason = "is not a vector that can be searched" if name in output.features else "is not there"
        msg = f"{output.storage.uri}: the feature {name!r} {reason}; it has: {listed}"
        raise JobError(msg)
    return searchable[name]


def _count_vectors(output: Output, column: Column) -> NDArray[np.int64]:
    """(parts + 1,) the position of the first vector of each part."""
    parts = output.manifest.parts
    if column.form in SPAN_COLUMNS:
        counts = [int(list_offsets(output.read(part, [SPAN_COLUMNS[column.form]]).column(0))[-1]) for part in parts]
    else:
        table = parts.columns
        counts = table["stop"].to_numpy() - table["start"].to_numpy()
        counts = counts - table["num_errors"].to_numpy() - table["num_null_texts"].to_numpy()
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _find_metric(source: IndexSource) -> Metric:
    """How the feature's vectors are compared: as the checkpoint declares, else by cosine.

    Raises:
        JobError: by Manhattan distance, which no target has.
    """
    declared = source.output.metadata.get("similarity")
    if source.kind == LATE:
        return Metric("maxsim")
    if source.kind == SPARSE:
        return Metric("dot")
    if declared == "manhattan":
        msg = f"{source.column.name}: the checkpoint compares vectors by Manhattan distance, which no index supports"
        raise JobError(msg)
    if declared in {"dot", "euclidean"} and source.column.pool == "declared":
        return Metric(declared)
    sample = source.dense_at(source.sample_positions(_UNIT_SAMPLE, seed=0, max_parts=_UNIT_PARTS))
    return Metric("cosine", unit=have_unit_length(sample, source.column.dtype))
