"""The texts of some rows of an output, from a kept column or from the source again.

Knows nothing of what is done with them. Invariants: texts are read a table at a time and only those of the wanted rows
become Python objects; the rows of the source that are passed over are bounded; a source that is gone or has changed
is a reason, not an error.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError, VarveError, one_line
from varve.output.run_output import Output
from varve.planning.saved_plan import load_source
from varve.preprocessing.computed_columns import is_text
from varve.source.dataset import Dataset
from varve.source.readers import ParquetReader

MAX_SCANNED_ROWS = 4_000_000  # of the source or of a kept column
_GAP_ROWS = 50_000  # between wanted rows of a Parquet file, from which on the row groups between are not read
_BATCH_ROWS = 1024

RowId = tuple[int, int]  # shard, row


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Wanted rows of one shard that are read in one go."""

    shard: int
    first: int  # row at which the reading starts
    rows: NDArray[np.int64]  # ascending

    @property
    def cost(self) -> int:
        """Rows that are passed over."""
        return int(self.rows[-1]) + 1 - self.first


@dataclass(slots=True)
class SampledTexts:
    """A reader of the texts of rows.

    Attributes:
        output: whose texts are read.
        max_rows: of the source that may be passed over; wanted rows that are too far away have no text.
        problem: why texts cannot be read; None if they can. Set while they are read.
    """

    output: Output
    max_rows: int = MAX_SCANNED_ROWS
    problem: str | None = field(default=None, init=False)

    def read(self, wanted: Sequence[RowId], seed: int) -> Iterator[tuple[RowId, tuple[str, ...]]]:
        """((shard, row), its text or its two texts) of those of the wanted rows that can be read, by shard and row.

        Args:
            wanted: rows.
            seed: decides which rows are read if they are too far apart.
        """
        is_kept = set(self.output.text_columns) <= set(self.output.kept_columns)
        try:
            yield from self._read_kept(wanted) if is_kept else self._read_source(wanted, seed)
        except VarveError as e:
            self.problem = one_line(e)
        except Exception as e:  # noqa: BLE001 (each reader raises its own, and a report needs no texts)
            self.problem = f"{type(e).__name__}: {one_line(e)}"

    def _read_source(self, wanted: Sequence[RowId], seed: int) -> Iterator[tuple[RowId, tuple[str, ...]]]:
        dataset, names = load_source(self.output.storage), self.output.text_columns
        if missing := [name for name in names if name not in dataset.schema.names]:
            msg = f"the source has no column {missing[0]!r}, which the manifest names"
            raise RunError(msg)
        for run in _affordable(_runs(wanted, dataset), self.max_rows, seed):
            yield from _texts_of(run.shard, run.first, dataset.read(run.shard, run.first), run.rows, names)

    def _read_kept(self, wanted: Sequence[RowId]) -> Iterator[tuple[RowId, tuple[str, ...]]]:
        names = self.output.text_columns
        if not all(is_text(self.output.schema.field(name).type) for name in names):
            msg = "the kept text columns hold no text"
            raise RunError(msg)
        parts = self.output.manifest.parts.columns
        shards, starts, stops = (parts[name].to_numpy() for name in ("shard", "start", "stop"))
        by_shard = _by_shard(wanted)
        scanned = 0
        for number in range(len(shards)):
            rows = by_shard.get(int(shards[number]), np.zeros(0, np.int64))
            rows = rows[(rows >= starts[number]) & (rows < stops[number])]
            if not len(rows) or scanned > self.max_rows:
                continue
            scanned += int(rows[-1] - starts[number])
            tables = self.output.batches(self.output.manifest.parts[number], list(names), _BATCH_ROWS)
            yield from _texts_of(int(shards[number]), int(starts[number]), tables, rows, names)


def _by_shard(wanted: Iterable[RowId]) -> dict[int, NDArray[np.int64]]:
    """Shard → its distinct rows, ascending."""
    ids = np.array(sorted(set(wanted)), np.int64).reshape(-1, 2)
    return {int(shard): ids[ids[:, 0] == shard, 1] for shard in np.unique(ids[:, 0])}


def _runs(wanted: Iterable[RowId], dataset: Dataset) -> list[_Run]:
    """The wanted rows as pieces: a Parquet file can be read from any row group, others from their first row only."""
    runs: list[_Run] = []
    for shard, rows in _by_shard(wanted).items():
        if isinstance(dataset.reader, ParquetReader):
            cuts = np.flatnonzero(np.diff(rows) > _GAP_ROWS) + 1
            runs += [_Run(shard, int(piece[0]), piece) for piece in np.split(rows, cuts)]
        else:
            runs.append(_Run(shard, 0, rows))
    return runs


def _affordable(runs: Sequence[_Run], max_rows: int, seed: int) -> list[_Run]:
    """The runs that together pass over at most `max_rows` rows, drawn at random, in their order."""
    order = np.random.default_rng([seed, 3]).permutation(len(runs))
    costs = np.cumsum([runs[number].cost for number in order])
    if len(costs) and costs[0] > max_rows:  # at least the start of one run
        run = runs[order[0]]
        rows = run.rows[run.rows < run.first + max_rows]
        return [_Run(run.shard, run.first, rows)] if len(rows) else []
    return [runs[number] for number in np.sort(order[costs <= max_rows])]


def _texts_of(
    shard: int, first: int, tables: Iterator[pa.Table], rows: NDArray[np.int64], names: Sequence[str]
) -> Iterator[tuple[RowId, tuple[str, ...]]]:
    for table in tables:
        inside = rows[(rows >= first) & (rows < first + len(table))]
        if len(inside):
            chosen = table.select(list(names)).take(pa.array(inside - first))
            cells = [_decode(chosen[name]) for name in names]
            yield from zip(((shard, row) for row in inside.tolist()), zip(*cells, strict=True), strict=True)
        first += len(table)
        if first > rows[-1]:
            return


def _decode(column: pa.ChunkedArray) -> list[str]:
    """Texts; one that is null is empty, bytes that are not UTF-8 are replaced."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return [(cell or b"").decode(errors="replace") for cell in column.cast(pa.large_binary()).to_pylist()]
