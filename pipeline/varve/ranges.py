"""Interval algebra over the rows of one shard. Pure.

A shard is cut by a fixed grid: cell k holds the rows [k * rows_per_part, (k + 1) * rows_per_part). A part is one cell,
so the name of a part depends on the job alone and never on who wrote it or when. The last part of a shard is shorter
than the grid (empty, where the rows come out even): that is how a listing alone tells that a shard has ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The half-open interval of rows [start, stop) of one shard."""

    shard: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows in the range; 0 for the part that only marks the end of its shard."""
        return self.stop - self.start

    def is_last(self, rows_per_part: int) -> bool:
        """Whether the range is shorter than its cell, so its shard ends here."""
        return self.num_rows < rows_per_part


@dataclass(frozen=True, slots=True)
class Missing:
    """What a shard still lacks: the cells (by their first row), and whether its end has been seen.

    `starts` are the missing cells below the known end. Where `end_known` is False, everything from `tail` on is missing
    too.
    """

    starts: frozenset[int]
    end_known: bool
    tail: int

    @property
    def is_empty(self) -> bool:
        """True when the shard needs no reading at all."""
        return self.end_known and not self.starts

    @property
    def first(self) -> int:
        """The first row that may be missing; nothing before it needs to be read."""
        return min((*self.starts, *(() if self.end_known else (self.tail,))), default=0)

    def wants(self, start: int) -> bool:
        """Whether the cell that starts at row `start` must be written."""
        return start in self.starts or (not self.end_known and start >= self.tail)

    def is_past(self, start: int) -> bool:
        """Whether nothing from row `start` on is missing, so that reading can stop."""
        return self.end_known and all(start > missing for missing in self.starts)


def missing(done: Iterable[Range], rows_per_part: int) -> Missing:
    """Say what one shard lacks, given the ranges of it that are committed.

    Raises:
        ValueError: a range does not lie on the grid, so it is no part of this job.
    """
    starts: set[int] = set()
    end: int | None = None
    for part in done:
        if part.start % rows_per_part or not 0 <= part.num_rows <= rows_per_part:
            msg = f"rows [{part.start}, {part.stop}) do not lie on the grid of {rows_per_part} rows"
            raise ValueError(msg)
        starts.add(part.start)
        if part.is_last(rows_per_part):
            end = part.start
    tail = max(starts, default=-rows_per_part) + rows_per_part
    holes = frozenset(range(0, tail if end is None else end, rows_per_part)) - starts
    return Missing(holes, end is not None, tail)


def gaps(ranges: Sequence[Range], num_rows: int | None) -> list[str]:
    """Say in words what keeps the ranges of one shard from covering it exactly once.

    Args:
        ranges: the committed ranges of one shard, in any order.
        num_rows: the shard's rows as its source counts them; None where only reading tells.

    Returns:
        One line per gap, overlap or wrong end; an empty list is the proof of coverage.
    """
    found: list[str] = []
    reached = 0
    for part in sorted(ranges):
        if part.start > reached:
            found.append(f"rows [{reached}, {part.start}) are in no part")
        elif part.start < reached:
            found.append(f"rows [{part.start}, {min(reached, part.stop)}) are in two parts")
        reached = max(reached, part.stop)
    if num_rows is not None and reached != num_rows:
        found.append(f"the parts end at row {reached}, the source at row {num_rows}")
    return found
