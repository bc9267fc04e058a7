"""What a benchmark tells: rows of figures as a Markdown table, as a bar plot, and raw.

A time counts only where the vectors are right: a row whose vectors differ by more than the tolerance is shown with its
difference and marked inexact, and is never the fastest exact peer.
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
    """How far vectors are from what is right."""

    largest: float  # of all numbers, absolute
    relative: float  # of all numbers together, L2
    cosine: float  # the smallest of all rows

    def is_exact(self, *, half: bool = False) -> bool:
        """Whether times of these vectors count."""
        if half:
            return self.relative <= HALF_TOLERANCE[0] and self.cosine >= HALF_TOLERANCE[1]
        return self.largest <= TOLERANCE


def compare(vectors: NDArray[np.float32], right: NDArray[np.float32]) -> Difference:
    """How far (N, D) vectors are from the right ones; other shapes and NaN are infinitely far."""
    if vectors.shape != right.shape or not np.isfinite(vectors).all():
        return Difference(float("inf"), float("inf"), -1.0)
    x, y = vectors.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines = (x * y).sum(1) / np.maximum(norms, 1e-30)
    relative = np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30)
    return Difference(float(np.abs(x - y).max()), float(relative), float(cosines.min()))


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of what a round's ratio is.

    What ran in one round ran within moments of each other. From one round to the next a shared machine's rate may swing
    by half, so that a ratio of two medians compares one machine with another.
    """
    return statistics.median(a / b for a, b in zip(above, below, strict=False))


@dataclass(slots=True)
class Row:
    """A variant's figures."""

    name: str
    seconds: list[float] = field(default_factory=list)  # of the rounds
    more: dict[str, list[float]] = field(default_factory=dict)  # other seconds of the same rounds, by name
    difference: Difference | None = None
    exact: bool = False
    peak_bytes: int = 0
    packages: dict[str, str] = field(default_factory=dict)
    ours: bool = False
    whole: bool = True  # does all the work, so that it can be compared with the others

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    def median_of(self, name: str) -> float | None:
        """The same of other seconds."""
        return statistics.median(self.more[name]) if self.more.get(name) else None

    def times(self, other: "Row") -> float:
        """How many times the other's seconds these are."""
        return median_ratio(self.seconds, other.seconds)


@dataclass(slots=True)
class Comparison:
    """The variants over the same texts."""

    title: str
    texts: int
    tokens: int
    rows: list[Row]
    unit: str = "tokens"  # of the rate: tokens or texts
    operations: int = 0  # of the matrix products
    floor: dict[str, list[float]] = field(default_factory=dict)  # operations per second of the rounds, by product
    left_out: dict[str, str] = field(default_factory=dict)  # variant → why

    def ours(self) -> Row | None:
        """The row that the others are compared with."""
        return next((row for row in self.rows if row.ours and row.whole and row.seconds), None)

    def fastest_peer(self) -> Row | None:
        """The fastest of the others whose vectors are right."""
        peers = [row for row in self.rows if not row.ours and row.whole and row.exact and row.seconds]
        return min(peers, key=lambda row: row.median, default=None)

    def rate(self, row: Row) -> float:
        """Tokens or texts per second."""
        return (self.tokens if self.unit == "tokens" else self.texts) / row.median

    def floor_seconds(self, product: str = "tokens") -> list[float]:
        """Seconds of all operations at the best rate of a round, of the products whose names hold a word."""
        rates = [rates for name, rates in self.floor.items() if product in name]
        return [self.operations / max(at_once) for at_once in zip(*rates, strict=True)]


def table(comparison: Comparison) -> str:
    """Markdown: the title, a line for each variant, then what the figures say and what is missing."""
    mine, extra = comparison.ours(), list(dict.fromkeys(name for row in comparison.rows for name in row.more))
    floor_s = comparison.floor_seconds()
    head = ["variant", "s (least-most)", *extra, f"{comparison.unit}/s", "times ours", "share of floor", "difference"]
    lines = [f"### {comparison.title}", "", f"{comparison.texts:,} texts, {comparison.tokens:,} tokens", ""]
    lines += [_line([*head, "peak MB"]), _line(["---"] * (len(head) + 1))]
    for row in (row for row in comparison.rows if row.seconds):
        share = median_ratio(floor_s, row.seconds) if floor_s and row.whole else None
        told = f"{row.difference.largest:.1e}" if row.difference else ""
        others = [_number(row.median_of(name), "{:.2f}") for name in extra]
        cells = [
            row.name,
            f"{row.median:.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})",
            *others,
            f"{comparison.rate(row):,.0f}",
            _number(row.times(mine) if mine else None, "{:.2f}"),
            _number(share, "{:.0%}"),
            told if row.exact else f"{told} inexact",
            f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
        ]
        lines.append(_line(cells))
    if floor_s:
        lines += ["", f"floor: {statistics.median(floor_s):.3f} s; " + _rates(comparison.floor)]
    peak_s = comparison.floor_seconds("cubed")
    if mine and peak_s and (encode := mine.more.get("of it encoding")):
        rate, share = comparison.tokens / statistics.median(encode), median_ratio(peak_s, encode)
        lines += ["", f"{mine.name}, encoding alone: {rate:,.0f} tokens/s, {share:.0%} of the device's dense peak"]
    if mine and (peer := comparison.fastest_peer()):
        lines += ["", f"fastest exact peer: {peer.name}, {peer.times(mine):.2f} times ours"]
    lines += [f"left out: {name}: {why}" for name, why in comparison.left_out.items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _rates(floor: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(rates) / 1e9:,.0f} GFLOP/s" for name, rates in floor.items())


def save(comparisons: Sequence[Comparison], folder: Path, name: str) -> None:
    """Write NAME.json, NAME.md, and NAME.png where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    content: dict[str, Any] = {**machine, "python": platform.python_version()}
    content["comparisons"] = [asdict(comparison) for comparison in comparisons]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    (folder / f"{name}.md").write_text("\n".join(table(comparison) for comparison in comparisons))
    _plot([comparison for comparison in comparisons if any(row.seconds for row in comparison.rows)], folder, name)


def _plot(comparisons: Sequence[Comparison], folder: Path, name: str) -> None:
    """A panel for each comparison: a bar for each variant, and a line where the floor is."""
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
