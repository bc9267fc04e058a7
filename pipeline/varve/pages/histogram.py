"""Counts of values in ranges, with marked values.

Knows nothing of runs. Invariant: never fails on values; ranges narrower than two pixels are merged.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varve.pages import label, svg_element
from varve.pages.axes import WIDTH, Frame, are_whole, no_values, x_axis, y_axis, y_axis_px
from varve.pages.figure import Figure, make_figure
from varve.pages.scale import Scale, as_floats, value_range

_MAX_BARS = 200
_MAX_MARKS = 12
_MARK_ROW_PX = 18


def histogram(
    title: str, x_title: str, edges: ArrayLike, counts: ArrayLike, *, marks: Sequence[tuple[float, str]] = ()
) -> Figure:
    """Draw counts.

    Args:
        title: what the plot shows.
        x_title: below the x axis.
        edges: (N + 1,) ascending ends of the ranges.
        counts: (N,) values in each range; NaN counts as zero.
        marks: (value, label) of vertical dashed lines.

    Raises:
        ValueError: there is not one edge more than counts.
    """
    at, heights = _merged(as_floats(edges), np.nan_to_num(as_floats(counts)))
    marks = [(value, label.label(name, 48)) for value, name in marks if math.isfinite(value)][:_MAX_MARKS]
    tallest = value_range([heights, [0.0]], margin=0.06, zero=True)
    frame = Frame(y_axis_px(*tallest), WIDTH - 24, 16 + _MARK_ROW_PX * len(marks), 16 + _MARK_ROW_PX * len(marks) + 264)
    x = frame.x_scale(*value_range([at, [value for value, _ in marks]]))
    y = frame.y_scale(*tallest)
    bars = "".join(_bar(at[i], at[i + 1], heights[i], x, y) for i in np.flatnonzero(heights))
    drawn = [y_axis(frame, y, "Count", whole=are_whole(heights)), bars, x_axis(frame, x, x_title, whole=are_whole(at))]
    drawn.append(no_values(frame) if not heights.any() else "")
    drawn.append(_mark_lines(frame, marks, x))
    rows = [(label.number(at[i]), label.number(at[i + 1]), label.number(heights[i])) for i in range(len(heights))]
    note = f"Neighbouring ranges are drawn together: {len(heights)} bars." if len(at) < np.size(edges) else ""
    return make_figure(title, (WIDTH, frame.bottom + 56), "".join(drawn), ("From", "To", "Count"), rows, note)


def _merged(edges: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most _MAX_BARS ranges; neighbours are added up."""
    if len(edges) != len(counts) + 1 and (len(edges) or len(counts)):
        msg = f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}"
        raise ValueError(msg)
    if len(counts) <= _MAX_BARS:
        return edges, counts
    starts = np.arange(0, len(counts), math.ceil(len(counts) / _MAX_BARS))
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _bar(low: float, high: float, count: float, x: Scale, y: Scale) -> str:
    hint = f"{label.number(low)} to {label.number(high)}: {label.number(count)}"
    start, stop = x(low), x(high)
    gap = 1 if stop - start > 4 else 0
    top, bottom = sorted((y(count), y(0)))
    return svg_element.rect(
        start, top, stop - start - gap, max(bottom - top, 1), f'fill="{svg_element.colour(0)}"', hint
    )


def _mark_lines(frame: Frame, marks: Sequence[tuple[float, str]], x: Scale) -> str:
    """Each label has a row of its own above the bars, at the side of its line that has room."""
    drawn = []
    for row, (value, name) in enumerate(sorted(marks, key=lambda mark: -mark[0])):
        place, top = x(value), 18 + row * _MARK_ROW_PX
        drawn.append(f'<line class="mark" x1="{place}" x2="{place}" y1="{top - 12}" y2="{frame.bottom}">')
        drawn.append(f"{svg_element.tooltip(f'{name}: {label.number(value)}')}</line>")
        is_right = place + 6 + label.width_px(name) <= frame.right
        drawn.append(svg_element.text(name, place + (6 if is_right else -6), top, "", "start" if is_right else "end"))
    return "".join(drawn)
