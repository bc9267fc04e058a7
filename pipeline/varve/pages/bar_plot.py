"""Horizontal bars with their labels at the left and their values at the right.

Knows nothing of runs. Invariant: never fails on labels or values, and draws at most 40 bars.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from varve.pages import label, svg_element
from varve.pages.axes import WIDTH
from varve.pages.figure import MAX_TABLE_ROWS, Figure, make_figure
from varve.pages.scale import Scale, as_floats, value_range

_MAX_BARS, _ROW_PX, _BAR_PX, _TOP = 40, 26, 18, 8
_VALUE_PX = 110  # room for the values at the right


def bar_plot(title: str, x_title: str, labels: Sequence[str], values: ArrayLike, *, form: str = "{:,.0f}") -> Figure:
    """Draw one bar per label, in the given order.

    Args:
        title: what the plot shows.
        x_title: what the values are, with their unit.
        labels: (N,) of the bars.
        values: (N,) lengths; may be negative or not finite.
        form: format of a value.
    """
    numbers = as_floats(values)
    shown = min(len(labels), len(numbers), _MAX_BARS)
    names = [label.label(name) for name in labels[:shown]]
    left = 24 + max((label.width_px(name) for name in names), default=0)
    x = Scale(*value_range([numbers[:shown], [0.0]], zero=True), left, WIDTH - _VALUE_PX)
    bottom = _TOP + _ROW_PX * shown
    texts = [label.formatted(value, form) for value in numbers[:MAX_TABLE_ROWS].tolist()]
    drawn = [svg_element.line(x(0), _TOP, x(0), bottom, "axis")]
    drawn += [_bar(at, names[at], float(numbers[at]), texts[at], x) for at in range(shown)]
    drawn.append(svg_element.text(label.label(x_title, 80), (left + WIDTH - _VALUE_PX) / 2, bottom + 22, "soft"))
    rows = list(zip(labels[:MAX_TABLE_ROWS], texts, strict=False))
    note = f"{len(labels) - shown:,} more are not drawn." if len(labels) > shown else ""
    return make_figure(title, (WIDTH, bottom + 34), "".join(drawn), ("", x_title), rows, note)


def _bar(at: int, name: str, value: float, text: str, x: Scale) -> str:
    y, middle = _TOP + _ROW_PX * at + (_ROW_PX - _BAR_PX) / 2, _TOP + _ROW_PX * at + _ROW_PX / 2 + 4.5
    start, stop = sorted((x(0), x(value if np.isfinite(value) else 0)))
    width = max(stop - start, 1 if np.isfinite(value) and value else 0)
    return (
        svg_element.text(name, min(x(x.low), x(0)) - 8, middle, "", "end")
        + svg_element.rect(start, y, width, _BAR_PX, f'fill="{svg_element.colour(0)}" rx="2"', f"{name}: {text}")
        + svg_element.text(text, stop + 8, middle, "soft", "start")
    )
