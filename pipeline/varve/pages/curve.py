"""Curves of a line plot: points → lines, interval bars or bands, marks. Pure.

Invariant: what is drawn of a series is bounded; of longer ones the smallest and the largest value of each short range
of points are kept, so no peak is lost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varve.pages import label, svg_element
from varve.pages.scale import Scale, as_floats

MAX_MARKS = 80  # points of a series that are drawn as marks


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one curve.

    Attributes:
        name: in the legend.
        x: positions, any order.
        y: values; NaN and infinities are gaps.
        low: lower ends of intervals, or None.
        high: upper ends of intervals, or None.
        names: of the points, for their texts on hover; the series' name and x if empty.
        alone_from: points at this x and beyond are not joined by the line.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    names: Sequence[str] = ()
    alone_from: float = math.inf


@dataclass(frozen=True, slots=True)
class Curve:
    """A series as arrays of equal length, sorted by x, without points whose x is not finite."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]  # NaN without intervals
    high: NDArray[np.float64]
    names: tuple[str, ...]
    alone_from: float

    @classmethod
    def of(cls, series: Series, limit: int) -> "Curve":
        """The series, thinned to about `limit` points."""
        x, y = as_floats(series.x), as_floats(series.y)
        none = np.full(len(y), np.nan)
        low = none if series.low is None else as_floats(series.low)
        high = none if series.high is None else as_floats(series.high)
        order = np.argsort(x, kind="stable")
        order = order[np.isfinite(x[order])]
        order = order[_thin(y[order], limit)]
        names = tuple(str(series.names[int(at)]) for at in order) if len(series.names) == len(x) else ()
        return cls(label.label(series.name), x[order], y[order], low[order], high[order], names, series.alone_from)

    @property
    def has_intervals(self) -> bool:
        """Whether any point has an interval."""
        return bool((np.isfinite(self.low) & np.isfinite(self.high)).any())


def _thin(y: NDArray[np.float64], limit: int) -> NDArray[np.integer]:
    """Numbers of the points to keep: the smallest and largest of each of limit / 2 ranges."""
    if len(y) <= limit:
        return np.arange(len(y))
    width = math.ceil(len(y) / max(limit // 2, 1))
    padded = np.full(math.ceil(len(y) / width) * width, np.nan)
    padded[: len(y)] = y
    ranges = padded.reshape(-1, width)
    starts = np.arange(len(ranges)) * width
    least = starts + np.where(np.isnan(ranges), np.inf, ranges).argmin(axis=1)
    most = starts + np.where(np.isnan(ranges), -np.inf, ranges).argmax(axis=1)
    return np.unique(np.concatenate([least, most, [0, len(y) - 1]]))


def draw(curve: Curve, number: int, x: Callable[[float], float], y: Scale, hints: Sequence[str]) -> str:
    """The markup of a curve: its intervals, its line with gaps, and marks if there are few points.

    Args:
        curve: to draw.
        number: of the curve, which decides its colour, shape and dashes.
        x: value → pixel.
        y: value → pixel.
        hints: text on hover of each point.
    """
    places = [(x(at), y(value)) if math.isfinite(value) else None for at, value in zip(curve.x, curve.y, strict=True)]
    with_marks = len(places) <= MAX_MARKS
    drawn = [_intervals(curve, number, x, y, bars=with_marks)]
    for at, segment in _segments(places, int(np.searchsorted(curve.x, curve.alone_from))):
        if len(segment) > 1:
            drawn.append(_polyline(segment, number))
        if with_marks or len(segment) == 1:
            drawn += [svg_element.mark(number, *place, hints[at + i]) for i, place in enumerate(segment)]
    return "".join(drawn)


def _segments(places: list[tuple[float, float] | None], alone: int) -> list[tuple[int, list[tuple[float, float]]]]:
    """Runs of points without gaps, with the number of their first point; from `alone` on each is a run of its own."""
    runs: list[tuple[int, list[tuple[float, float]]]] = []
    for at, place in enumerate(places):
        if place is None:
            continue
        if at == 0 or at >= alone or places[at - 1] is None:
            runs.append((at, []))
        runs[-1][1].append(place)
    return runs


def _polyline(points: list[tuple[float, float]], number: int) -> str:
    path = " ".join(f"{svg_element.px(x)},{svg_element.px(y)}" for x, y in points)
    style = f'fill="none" stroke="{svg_element.colour(number)}" stroke-width="2" stroke-linejoin="round"'
    return f'<polyline points="{path}" {style}{svg_element.dash(number)}/>'


def _intervals(curve: Curve, number: int, x: Callable[[float], float], y: Scale, *, bars: bool) -> str:
    """Intervals as bars or, of many points, as a band."""
    shown = np.flatnonzero(np.isfinite(curve.low) & np.isfinite(curve.high))
    ends = [(x(curve.x[at]), y(curve.low[at]), y(curve.high[at])) for at in shown]
    if not bars and len(ends) > 1:
        outline = [(at, high) for at, _, high in ends] + [(at, low) for at, low, _ in reversed(ends)]
        path = " ".join(f"{svg_element.px(at)},{svg_element.px(end)}" for at, end in outline)
        return f'<polygon points="{path}" fill="{svg_element.colour(number)}" opacity=".2"/>'
    style = f'stroke="{svg_element.colour(number)}" stroke-width="1.6" opacity=".65"'
    return "".join(f'<line x1="{at}" x2="{at}" y1="{low}" y2="{high}" {style}/>' for at, low, high in ends)
