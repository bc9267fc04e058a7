"""Results of a benchmark: figures as Markdown tables, as a bar plot, and raw as JSON.

In the table of float32, only times of correct vectors are compared: a row whose vectors differ by more than the
tolerance is shown with its difference, is marked inexact, and is never the fastest exact peer. The table of reduced
precision states the error beside each time.
"""

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.machine import describe_cpu
from tests.bench.plot import plot
from tests.bench.results import Comparison, Row, median_ratio


def document(comparisons: Sequence[Comparison]) -> str:
    """Markdown: the CPU, then the tables of each comparison."""
    return "\n".join([f"CPU: {describe_cpu()}\n", *map(table, comparisons)])


def table(comparison: Comparison) -> str:
    """Markdown of one comparison: tables of float32 and of reduced precision, and what was left out."""
    lines = [f"### {comparison.title}", "", f"{comparison.texts:,} texts, {comparison.tokens:,} tokens", ""]
    lines += [*_float32(comparison), *_floor(comparison)]
    if (mine := comparison.ours()) and (peer := comparison.fastest_peer()):
        lines += ["", f"fastest exact peer: {peer.name}, {peer.times(mine):.2f} times ours"]
    if comparison.timed(reduced=True):
        lines += ["", "Reduced precision, and peers in their default precision:", "", *_reduced(comparison), ""]
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out.items()]
    return "\n".join(lines) + "\n"


def _float32(comparison: Comparison) -> list[str]:
    mine, rows = comparison.ours(), comparison.timed()
    extra = list(dict.fromkeys(name for row in rows for name in row.more))
    floor_s = comparison.floor_seconds()
    head = ["variant", "s (least-most)", *extra, f"{comparison.unit}/s", "times ours", "share of floor", "difference"]
    lines = _head([*head, "peak MB"])
    for row in rows:
        share = median_ratio(floor_s, row.seconds) if floor_s and row.whole else None
        difference = f"{row.difference.largest:.1e}" if row.difference else ""
        cells = [
            row.name,
            _seconds(row),
            *(_number(row.median_of(name), "{:.2f}") for name in extra),
            f"{comparison.rate(row):,.0f}",
            _times(row, mine),
            _number(share, "{:.0%}"),
            difference if row.exact else f"{difference} inexact",
            f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
        ]
        lines.append(_line(cells))
    return lines


def _reduced(comparison: Comparison) -> list[str]:
    """Varve in float32, then the rows in reduced precision; error against float32 eager, one text at a time."""
    mine, mine_reduced = comparison.ours(), comparison.ours(reduced=True)
    columns = [row.name for row in (mine, mine_reduced) if row]
    head = ["variant", "s (least-most)", f"{comparison.unit}/s", *(f"times {name}" for name in columns)]
    lines = _head([*head, "relative L2 error", "mean cosine", "least cosine", "peak MB"])
    for row in [*([mine] if mine else []), *comparison.timed(reduced=True)]:
        error = row.difference
        cells = [
            row.name,
            _seconds(row),
            f"{comparison.rate(row):,.0f}",
            *(_times(row, other) for other in (mine, mine_reduced) if other),
            *([f"{error.relative:.1e}", f"{error.mean_cosine:.6f}", f"{error.cosine:.6f}"] if error else [""] * 3),
            f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "",
        ]
        lines.append(_line(cells))
    return lines


def _floor(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    if floor_s := comparison.floor_seconds():
        lines += ["", f"floor: {statistics.median(floor_s):.3f} s; " + _rates(comparison.floor)]
    peak_s, mine = comparison.floor_seconds("cubed"), comparison.ours()
    if mine and peak_s and (encode := mine.more.get("encoding s")):
        rate, share = comparison.tokens / statistics.median(encode), median_ratio(peak_s, encode)
        lines += ["", f"{mine.name}, encoding alone: {rate:,.0f} tokens/s, {share:.0%} of the device's dense peak"]
    return lines


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(row: Row) -> str:
    return f"{row.median:.2f} ({min(row.seconds):.2f}-{max(row.seconds):.2f})"


def _times(row: Row, other: Row | None) -> str:
    return _number(row.times(other) if other else None, "{:.2f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _rates(floor: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(rates) / 1e9:,.0f} GFLOP/s" for name, rates in floor.items())


def save(comparisons: Sequence[Comparison], folder: Path, name: str) -> None:
    """Write NAME.json, NAME.md and, if matplotlib is installed, NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": describe_cpu(), "python": platform.python_version()}
    content["comparisons"] = [asdict(comparison) for comparison in comparisons]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    (folder / f"{name}.md").write_text(document(comparisons))
    plot(comparisons, folder / f"{name}.png")
