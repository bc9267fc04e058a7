"""Axes of a plot: the frame, grids, ticks, titles, shaded ranges of x. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.pages import label, svg_element
from varve.pages.scale import Scale, ticks, time_ticks

WIDTH = 900
_MAX_SPANS, _MAX_SPAN_LABELS = 200, 12


@dataclass(frozen=True, slots=True)
class Frame:
    """The rectangle of a plot's values, in pixels; y grows downwards."""

    left: float
    right: float
    top: float
    bottom: float

    def x_scale(self, low: float, high: float) -> Scale:
        """Values → pixels of x."""
        return Scale(low, high, self.left, self.right)

    def y_scale(self, low: float, high: float) -> Scale:
        """Values → pixels of y."""
        return Scale(low, high, self.bottom, self.top)


@dataclass(frozen=True, slots=True)
class Span:
    """A range of x that a plot shades, with a label."""

    start: float
    stop: float
    label: str


def y_axis_px(low: float, high: float) -> float:
    """How much room the values and the title of a y axis need at the left."""
    return 38 + max((label.width_px(text) for _, text in _number_ticks(low, high)), default=0)


def _number_ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> list[tuple[float, str]]:
    values = ticks(low, high, count, whole=whole)
    return list(zip(values, label.tick_texts(values), strict=True))


def y_axis(frame: Frame, y: Scale, title: str, *, whole: bool = False) -> str:
    """Horizontal grid lines with their values at the left, and the title along the axis."""
    lines = "".join(
        svg_element.line(frame.left, y(value), frame.right, y(value))
        + svg_element.text(text, frame.left - 8, y(value) + 4, "soft", "end")
        for value, text in _number_ticks(y.low, y.high, whole=whole)
    )
    return lines + svg_element.turned_text(label.label(title, 48), 15, (frame.top + frame.bottom) / 2)


def x_axis(
    frame: Frame, x: Scale, title: str, *, is_time: bool = False, whole: bool = False, names: Mapping[float, str] = {}
) -> str:
    """The line below the values, ticks with their values, and the title.

    Args:
        frame: of the plot.
        x: scale of the axis.
        title: below the ticks.
        is_time: values are seconds.
        whole: ticks are whole numbers.
        names: texts at the given values, instead of numbers.
    """
    drawn = [svg_element.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    numbers = [] if names or is_time else _number_ticks(x.low, x.high, 9, whole=whole)
    times = [(value, label.duration(value)) for value in time_ticks(x.low, x.high)] if is_time and not names else []
    free = -math.inf
    for value, text in [*names.items(), *times, *numbers]:
        half = label.width_px(text) / 2
        if x(value) - half < free:  # it would overlap the previous one
            continue
        drawn.append(svg_element.line(x(value), frame.bottom, x(value), frame.bottom + 4, "axis"))
        drawn.append(svg_element.text(text, x(value), frame.bottom + 18, "soft"))
        free = x(value) + half + 4
    middle = (frame.left + frame.right) / 2
    return "".join(drawn) + (svg_element.text(label.label(title, 80), middle, frame.bottom + 42) if title else "")


def shaded(frame: Frame, x: Scale, spans: Sequence[Span]) -> str:
    """Ranges of x as grey rectangles; labels are above, where they have room, and shown on hover."""
    drawn, free = [], frame.left
    for at, span in enumerate(spans[:_MAX_SPANS]):
        if not (math.isfinite(span.start) and math.isfinite(span.stop)):
            continue
        start, stop = sorted((x(span.start), x(span.stop)))
        text = label.label(span.label)
        top, style = frame.top - 4, 'class="span"'
        hint = label.label(span.label, 200)
        drawn.append(svg_element.rect(start, top, max(stop - start, 1.5), frame.bottom - top, style, hint))
        place = max(start, frame.left) + 4
        if at < _MAX_SPAN_LABELS and place >= free and place + label.width_px(text) <= frame.right:
            drawn.append(svg_element.text(text, place, frame.top - 8, "soft", "start"))
            free = place + label.width_px(text) + 8
    return "".join(drawn)


def no_values(frame: Frame) -> str:
    """A text in the middle of a plot without values."""
    return svg_element.text("No values", (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "soft")


def are_whole(values: NDArray[np.float64]) -> bool:
    """Whether all finite values are whole numbers."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and bool((finite == np.round(finite)).all()) and bool(np.abs(finite).max() < 1e15)
