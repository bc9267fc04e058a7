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


def y_axis(frame: Frame, y: Scale, title: str, *, whole: bool = False) -> str:
    """Horizontal grid lines with their values at the left, and the title along the axis."""
    marks = ticks(y.low, y.high, whole=whole)
    step = marks[1] - marks[0] if len(marks) > 1 else 0.0
    lines = "".join(
        svg_element.line(frame.left, y(value), frame.right, y(value))
        + svg_element.text(label.tick_number(value, step), frame.left - 8, y(value) + 4, "soft", "end")
        for value in marks
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
    values = list(names) if names else time_ticks(x.low, x.high) if is_time else ticks(x.low, x.high, 9, whole=whole)
    step = values[1] - values[0] if len(values) > 1 else 0.0
    texts = [names[v] if names else label.duration(v) if is_time else label.tick_number(v, step) for v in values]
    free = -math.inf
    for value, text in zip(values, texts, strict=True):
        half = label.width_px(text) / 2
        if x(value) - half < free:  # it would overlap the previous one
            continue
        drawn.append(svg_element.line(x(value), frame.bottom, x(value), frame.bottom + 4, "axis"))
        drawn.append(svg_element.text(text, x(value), frame.bottom + 18, "soft"))
        free = x(value) + half + 4
    middle = (frame.left + frame.right) / 2
    return "".join(drawn) + (svg_element.text(label.label(title, 80), middle, frame.bottom + 42) if title else "")


def shaded(frame: Frame, x: Scale, spans: Sequence[Span], *, show: bool = True) -> str:
    """Ranges of x as grey rectangles; labels are written where they have room, and shown on hover."""
    drawn, free = [], frame.left
    for at, span in enumerate(spans[:_MAX_SPANS]):
        if not (math.isfinite(span.start) and math.isfinite(span.stop)):
            continue
        start, stop = sorted((x(span.start), x(span.stop)))
        text = label.label(span.label)
        drawn.append(
            svg_element.rect(
                start,
                frame.top,
                max(stop - start, 1.5),
                frame.bottom - frame.top,
                'class="span"',
                label.label(span.label, 200),
            )
        )
        place = max(start, frame.left) + 4
        if show and at < _MAX_SPAN_LABELS and place >= free and place + label.width_px(text) <= frame.right:
            drawn.append(svg_element.text(text, place, frame.top + 14, "soft", "start"))
            free = place + label.width_px(text) + 8
    return "".join(drawn)


def are_whole(values: NDArray[np.float64]) -> bool:
    """Whether all finite values are whole numbers."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and bool((finite == np.round(finite)).all()) and bool(np.abs(finite).max() < 1e15)
