"""Measured seconds and differences of the variants of a benchmark, and the ratios between them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.difference import Difference


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round.

    Runs of one round follow each other directly. Between rounds the speed of a shared machine may change by half, so a
    ratio of medians would compare different conditions.
    """
    return statistics.median(a / b for a, b in zip(above, below, strict=False))


@dataclass(slots=True)
class Row:
    """Figures of one variant."""

    name: str
    seconds: list[float] = field(default_factory=list)  # per round
    more: dict[str, list[float]] = field(default_factory=dict)  # name → other seconds per round
    difference: Difference | None = None
    exact: bool = False
    peak_bytes: int = 0
    ours: bool = False
    whole: bool = True  # does all the work, so it is comparable with the peers
    reduced: bool = False  # multiplies in less than float32, or in what its authors chose as the default

    @property
    def median(self) -> float:
        """Median seconds of the rounds."""
        return statistics.median(self.seconds)

    def median_of(self, name: str) -> float | None:
        """Median of other seconds; None if they were not measured."""
        return statistics.median(self.more[name]) if self.more.get(name) else None

    def times(self, other: "Row") -> float:
        """Seconds of this row by those of another."""
        return median_ratio(self.seconds, other.seconds)


@dataclass(slots=True)
class Comparison:
    """Variants over the same texts."""

    title: str
    texts: int
    tokens: int
    rows: list[Row]
    unit: str = "tokens"  # of the rate: tokens or texts
    operations: int = 0  # of the matrix products
    floor: dict[str, list[float]] = field(default_factory=dict)  # product → operations per second, per round
    left_out: dict[str, str] = field(default_factory=dict)  # variant → reason

    def timed(self, *, reduced: bool = False) -> list[Row]:
        """The rows with times, in float32 or in reduced precision."""
        return [row for row in self.rows if row.seconds and row.reduced == reduced]

    def ours(self, *, reduced: bool = False) -> Row | None:
        """The row of Varve that peers are compared with."""
        return next((row for row in self.timed(reduced=reduced) if row.ours and row.whole), None)

    def fastest_peer(self) -> Row | None:
        """The fastest peer in float32 with exact vectors."""
        peers = [row for row in self.timed() if not row.ours and row.whole and row.exact]
        return min(peers, key=lambda row: row.median, default=None)

    def rate(self, row: Row) -> float:
        """Tokens or texts per second."""
        return (self.tokens if self.unit == "tokens" else self.texts) / row.median

    def floor_seconds(self, product: str = "tokens") -> list[float]:
        """Seconds per round of all operations at the best rate of the products whose names contain `product`."""
        rates = [rates for name, rates in self.floor.items() if product in name]
        return [self.operations / max(of_round) for of_round in zip(*rates, strict=True)]
