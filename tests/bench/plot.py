"""Bar plot of a benchmark's results in float32."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.bench.results import Comparison


def plot(comparisons: Sequence[Comparison], file: Path) -> None:
    """Write one panel per comparison: a bar per variant, and a line for the floor; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt

    comparisons = [each for each in comparisons if each.timed()]
    if not comparisons:
        return
    bars = [[row for row in comparison.timed() if row.whole] for comparison in comparisons]
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
    figure.savefig(file, dpi=110)
    plt.close(figure)
