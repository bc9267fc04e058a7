"""Results of a benchmark: figures as a Markdown table, as a bar plot, and raw as JSON.

Only times of correct vectors are compared: a row whose vectors differ by more than the tolerance is shown with its
difference, is marked inexact, and is never the fastest exact peer.
"""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 2e-5  # largest difference of float32 means that are not normalised
HALF_TOLERANCE = (3e-3, 1 - 1e-5)  # largest relative difference and smallest cosine of half precision


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of vectors from the reference."""

    largest: float  # absolute, of one value
    relative: float  # L2 norm of the difference by that of the reference
    cosine: float  # smallest cosine of a row

    def is_exact(self, *, half: bool = False) -> bool:
        """Whether the vectors are within the tolerance."""
        if half:
            return self.relative <= HALF_TOLERANCE[0] and self.cosine >= HALF_TOLERANCE[1]
        return self.largest <= TOLERANCE


def compare(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> Difference:
    """Difference of (N, D) vectors from the reference; infinite for another shape, NaN or infinity."""
    if vectors.shape != reference.shape or not np.isfinite(vectors).all():
        return Difference(float("inf"), float("inf"), -1.0)
    x, y = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = (x * y).sum(1) / np.maximum(norms, 1e-30)
    relative = np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30)
    return Difference(float(np.abs(x - y).max()), float(relative), float(cosines.min()))


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

    def ours(self) -> Row | None:
        """The row of Varve that peers are compared with."""
        return next((row for row in self.rows if row.ours and row.whole and row.seconds), None)

    def fastest_peer(self) -> Row | None:
        """The fastest peer with exact vectors."""
        peers = [row for row in self.rows if not row.ours and row.whole and row.exact and row.seconds]
        return min(peers, key=lambda row: row.median, default=None)

    def rate(self, row: Row) -> float:
        """Tokens or texts per second."""
        return (self.tokens if self.unit == "tokens" else self.texts) / row.median

    def floor_seconds(self, product: str = "tokens") -> list[float]:
        """Seconds per round of all operations at the best rate of the products whose names contain `product`."""
        rates = [rates for name, rates in self.floor.items() if product in name]
        return [self.operations / max(of_round) for of_round in zip(*rates, strict=True)]


def table(comparison: Comparison) -> str:
    """Markdown: the title, one line per variant, then the floor, the fastest exact peer and the variants left out."""
    mine, extra = comparison.ours(), list(dict.fromkeys(name for row in comparison.rows for name in row.more))
    floor_s = comparison.floor_seconds()
    head = ["variant", "s (least-most)", *extra, f"{comparison.unit}/s", "times ours", "share of floor", "difference"]
    lines = [f"### {comparison.title}", "", f"{comparison.texts:,} texts, {comparison.tokens:,} tokens", ""]
    lines += [_line([*head, "peak MB"]), _line(["---"] * (len(head) + 1))]
    for row in (row for row in comparison.rows if row.seconds):
        share = median_ratio(floor_s, row.seconds) if floor_s and row.whole else None
        difference = f"{row.difference.largest:.1e}" if row.difference else ""
        extra_cells = [_number(row.median_of(name), "{:.2f}") for name in extra]
        cells = [
            row.name,
            f"{row.median:.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})",
            *extra_cells,
            f"{comparison.rate(row):,.0f}",
            _number(row.times(mine) if mine else None, "{:.2f}"),
            _number(share, "{:.0%}"),
            difference if row.exact else f"{difference} inexact",
            f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
        ]
        lines.append(_line(cells))
    if floor_s:
        lines += ["", f"floor: {statistics.median(floor_s):.3f} s; " + _rates(comparison.floor)]
    peak_s = comparison.floor_seconds("cubed")
    if mine and peak_s and (encode := mine.more.get("encoding s")):
        rate, share = comparison.tokens / statistics.median(encode), median_ratio(peak_s, encode)
        lines += ["", f"{mine.name}, encoding alone: {rate:,.0f} tokens/s, {share:.0%} of the device's dense peak"]
    if mine and (peer := comparison.fastest_peer()):
        lines += ["", f"fastest exact peer: {peer.name}, {peer.times(mine):.2f} times ours"]
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out.items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _rates(floor: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(rates) / 1e9:,.0f} GFLOP/s" for name, rates in floor.items())


def save(comparisons: Sequence[Comparison], folder: Path, name: str) -> None:
    """Write NAME.json, NAME.md and, if matplotlib is installed, NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    content: dict[str, Any] = {**machine, "python": platform.python_version()}
    content["comparisons"] = [asdict(comparison) for comparison in comparisons]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    (folder / f"{name}.md").write_text("\n".join(table(comparison) for comparison in comparisons))
    _plot([comparison for comparison in comparisons if any(row.seconds for row in comparison.rows)], folder, name)


def _plot(comparisons: Sequence[Comparison], folder: Path, name: str) -> None:
    """One panel per comparison: a bar per variant, and a line for the floor."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt

    if not comparisons:
        return
    bars = [[row for row in comparison.rows if row.seconds and row.whole] for comparison in comparisons]
    figure, axes = plt.subplots(
        len(comparisons),
        figsize=(9, sum(1.2 + 0.28 * len(rows) for rows in bars)),
        height_ratios=[1 + len(rows) for rows in bars],
        squeeze=False,
        layout="constrained",
    )
    for comparison, rows, (axis,) in zip(comparisons, bars, axes, strict=True):
        rows.sort(key=comparison.rate)
        colors = ["tab:blue" if row.ours else "tab:gray" if row.exact else "lightgray" for row in rows]
        names = [row.name if row.exact else f"{row.name} (inexact)" for row in rows]
        axis.barh(names, [comparison.rate(row) for row in rows], color=colors)
        if floor_s := comparison.floor_seconds():
            axis.axvline(comparison.tokens / statistics.median(floor_s), color="black", linestyle="--", label="floor")
            axis.legend(loc="lower right")
        axis.set_title(comparison.title, loc="left", fontsize=10)
        axis.set_xlabel(f"{comparison.unit}/s")
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)
