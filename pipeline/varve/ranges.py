"""Ranges of rows of one shard: which are missing, and whether they cover the shard exactly once. Pure functions.

A fixed grid cuts each shard: cell k holds the rows [k * rows_per_part, (k + 1) * rows_per_part). A part is one cell, so
the name of a part depends on the job alone, never on the worker or the time. The last part of a shard is shorter than a
cell, and empty if the number of rows is a multiple of rows_per_part. So a listing alone shows that a shard has ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Parts of a shard; a shard is one file or less.
MAX_CELLS = 10_000_000


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The half-open interval of rows [start, stop) of one shard."""

    shard: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Number of rows; 0 for an empty part that only marks the end of its shard."""
        return self.stop - self.start

    def is_last(self, rows_per_part: int) -> bool:
        """Whether the range is shorter than its cell, so the shard ends here."""
        return self.num_rows < rows_per_part


@dataclass(frozen=True, slots=True)
class Missing:
    """The cells of a shard that are not committed yet.

    Attributes:
        starts: first rows of the missing cells below the end of the shard, or below `tail` if the end is not known.
        end_known: whether the last part of the shard is committed.
        tail: if the end is not known, all rows from this one on are missing too.
    """

    starts: frozenset[int]
    end_known: bool
    tail: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing is missing, so the shard need not be read."""
        return self.end_known and not self.starts

    @property
    def first(self) -> int:
        """The first row that may be missing; rows before it need not be read."""
        return min((*self.starts, *(() if self.end_known else (self.tail,))), default=0)

    def wants(self, start: int) -> bool:
        """Whether the cell that starts at row `start` must be written."""
        return start in self.starts or (not self.end_known and start >= self.tail)

    def is_past(self, start: int) -> bool:
        """Whether nothing from row `start` on is missing, so reading can stop."""
        return self.end_known and all(start > missing for missing in self.starts)


def missing(done: Iterable[Range], rows_per_part: int) -> Missing:
    """Return what one shard lacks, given its committed ranges.

    Raises:
        ValueError: a range is not a cell of the grid, so it is not a part of this job.
    """
    starts: set[int] = set()
    end: int | None = None
    for part in done:
        if part.start % rows_per_part or not 0 <= part.num_rows <= rows_per_part:
            msg = f"rows [{part.start}, {part.stop}) are not a cell of the grid of {rows_per_part} rows"
            raise ValueError(msg)
        starts.add(part.start)
        if part.is_last(rows_per_part):
            end = part.start
    tail = max(starts, default=-rows_per_part) + rows_per_part
    if tail > MAX_CELLS * rows_per_part:
        msg = f"row {tail - rows_per_part} is beyond the first {MAX_CELLS:,} cells of {rows_per_part} rows"
        raise ValueError(msg)
    holes = frozenset(range(0, tail if end is None else end, rows_per_part)) - starts
    return Missing(holes, end is not None, tail)


def gaps(ranges: Sequence[Range], num_rows: int | None) -> list[str]:
    """Describe what keeps the ranges of one shard from covering it exactly once.

    Args:
        ranges: the committed ranges of one shard, in any order.
        num_rows: the shard's rows as its source counts them; None if they are known only after reading.

    Returns:
        One line per gap, overlap or wrong end; an empty list proves the coverage.
    """
    problems: list[str] = []
    reached = 0
    for part in sorted(ranges):
        if part.start > reached:
            problems.append(f"rows [{reached}, {part.start}) are in no part")
        elif part.start < reached:
            problems.append(f"rows [{part.start}, {min(reached, part.stop)}) are in two parts")
        reached = max(reached, part.stop)
    if num_rows is not None and reached != num_rows:
        problems.append(f"the parts end at row {reached}, the source at row {num_rows}")
    return problems
