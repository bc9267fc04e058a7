"""Curves over a common axis, with intervals, shaded ranges, reference lines and a ring around one point.

Knows nothing of runs. Invariant: never fails on values or names, and its size is bounded.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from varve.pages import curve, label, svg_element
from varve.pages.axes import WIDTH, Frame, Span, are_whole, no_values, shaded, x_axis, y_axis, y_axis_px
from varve.pages.curve import Curve, Series
from varve.pages.figure import MAX_TABLE_ROWS, Figure, make_figure
from varve.pages.scale import Scale, as_floats, value_range

__all__ = ["Series", "Span", "line_plot"]

_HEIGHT = 330  # of the frame and the axis below it
_MAX_SERIES, _MAX_POINTS = 48, 12_000
_LABEL_PX, _LEVEL_LABELS_PX = 17, 190
_SHIFT_PX = 7  # between curves with intervals, so that bars do not cover each other


def line_plot(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[Series],
    *,
    spans: Sequence[Span] = (),
    y_from_zero: bool = True,
    y_range: tuple[float, float] | None = None,
    x_is_time: bool = False,
    x_names: Mapping[float, str] | None = None,
    levels: Sequence[tuple[float, str]] = (),
    ring: tuple[str, float, str] | None = None,
) -> Figure:
    """Draw curves.

    Args:
        title: what the plot shows.
        x_title: below the x axis.
        y_title: along the y axis.
        series: at most 48 are drawn.
        spans: shaded ranges of x.
        y_from_zero: the y axis includes zero.
        y_range: ends of the y axis, instead of those of the values.
        x_is_time: x are seconds.
        x_names: ticks of the x axis, instead of numbers.
        levels: (y, label) of dashed lines, labelled at the right.
        ring: (name of a series, x of its point, text in the legend) of the point with a ring.

    Raises:
        ValueError: a series has x and y of different lengths.
    """
    shown = series[:_MAX_SERIES]
    curves = [Curve.of(one, max(40, _MAX_POINTS // max(len(shown), 1))) for one in shown]
    levels = [(value, label.label(name, 16)) for value, name in levels if math.isfinite(value)]
    legend, height = _legend(curves, ring)
    y_ends = y_range or _y_range(curves, [value for value, _ in levels], zero=y_from_zero)
    top = height + (32 if spans else 20)
    frame = Frame(y_axis_px(*y_ends), WIDTH - (_LEVEL_LABELS_PX if levels else 24), top, top + _HEIGHT - 56)
    x, y = frame.x_scale(*_x_range(curves, spans, margin=0.05 if x_names else 0.02)), frame.y_scale(*y_ends)
    at = _shifted(curves, x)
    whole = are_whole(np.concatenate([np.zeros(0), *(one.x for one in curves)]))
    drawn = [shaded(frame, x, spans), y_axis(frame, y, y_title)]
    drawn.append(x_axis(frame, x, x_title, is_time=x_is_time, whole=whole, names=x_names or {}))
    if not any(np.isfinite(one.y).any() for one in curves):
        drawn.append(no_values(frame))
    hints = [_hints(one, x_names or {}, is_time=x_is_time) for one in curves]
    drawn += [curve.draw(one, i, at[i], y, hints[i]) for i, one in enumerate(curves)]
    drawn += [_level_lines(frame, levels, y), legend, _ring(curves, ring, at, y)]
    header, rows, left_out = _table(x_title, shown, x_names or {}, is_time=x_is_time)
    note = f"{len(series) - len(shown):,} more curves are not shown. " if len(series) > len(shown) else ""
    return make_figure(title, (WIDTH, frame.bottom + 56), "".join(drawn), header, rows, (note + left_out).strip())


def _x_range(curves: Sequence[Curve], spans: Sequence[Span], *, margin: float) -> tuple[float, float]:
    return value_range([*(one.x for one in curves), *([span.start, span.stop] for span in spans)], margin=margin)


def _y_range(curves: Sequence[Curve], levels: Sequence[float], *, zero: bool) -> tuple[float, float]:
    parts = [part for one in curves for part in (one.y, one.low, one.high)]
    return value_range([*parts, levels], margin=0.06, zero=zero)


def _shifted(curves: Sequence[Curve], x: Scale) -> list[Callable[[float], float]]:
    """For each curve the map from x to pixels; curves with interval bars are moved apart."""
    few = sum(one.has_intervals and len(one.x) <= curve.MAX_MARKS for one in curves)
    middle = (len(curves) - 1) / 2
    shifts = [_SHIFT_PX * (at - middle) if few > 1 and len(curves) <= 8 else 0 for at in range(len(curves))]
    return [lambda value, shift=shift: round(x(value) + shift, 1) for shift in shifts]


def _hints(one: Curve, x_names: Mapping[float, str], *, is_time: bool) -> list[str]:
    if len(one.x) > curve.MAX_MARKS:
        return [one.name] * len(one.x)
    names = one.names or [f"{one.name}, {_x_text(value, x_names, is_time=is_time)}" for value in one.x]
    return [
        f"{label.label(name, 80)}: {_interval_text(*values)}"
        for name, *values in zip(names, one.y, one.low, one.high, strict=True)
    ]


def _x_text(value: float, x_names: Mapping[float, str], *, is_time: bool) -> str:
    return x_names.get(value) or (label.duration(value) if is_time else label.number(value))


def _interval_text(value: float, low: float, high: float) -> str:
    text = label.number(value)
    return f"{text} ({label.number(low)} to {label.number(high)})" if math.isfinite(low) else text


def _level_lines(frame: Frame, levels: Sequence[tuple[float, str]], y: Scale) -> str:
    """Dashed lines with labels at the right, which are moved apart if they are close."""
    drawn, free = [], 0.0
    for value, name in sorted(levels, key=lambda level: y(level[0])):
        place = max(y(value) + 4, free)
        free = place + _LABEL_PX
        drawn.append(svg_element.line(frame.left, y(value), frame.right, y(value), "base", f"{name}: {value:.3f}"))
        drawn.append(svg_element.text(f"{name} {value:.3f}", frame.right + 8, place, "soft", "start"))
    return "".join(drawn)


def _legend(curves: Sequence[Curve], ring: tuple[str, float, str] | None) -> tuple[str, float]:
    """Names of the curves in the order of their numbers; none for a single curve without a ring."""
    keys = []
    for number, one in enumerate(curves):
        stroke = f'stroke="{svg_element.colour(number)}" stroke-width="2"{svg_element.dash(number)}'
        keys.append((f'<path d="M-7 0h14" {stroke}/>{svg_element.mark(number, 0, 0, one.name)}', one.name))
    if ring:
        keys.append(('<circle class="best" r="7"/>', label.label(ring[2], 60)))
    return svg_element.legend(keys if len(keys) > 1 else [], 62, WIDTH - 24)


def _ring(
    curves: Sequence[Curve], ring: tuple[str, float, str] | None, at: Sequence[Callable[[float], float]], y: Scale
) -> str:
    if ring is None:
        return ""
    return "".join(
        f'<circle class="best" cx="{at[number](float(one.x[i]))}" cy="{y(float(one.y[i]))}" r="9"/>'
        for number, one in enumerate(curves)
        if one.name == label.label(ring[0])
        for i in np.flatnonzero((one.x == ring[1]) & np.isfinite(one.y))[:1]
    )


def _table(
    x_title: str, series: Sequence[Series], x_names: Mapping[float, str], *, is_time: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str]:
    """One row per x, one column per series; at most MAX_TABLE_ROWS rows."""
    xs = np.unique(np.concatenate([np.zeros(0), *(as_floats(one.x) for one in series)]))
    xs = xs[np.isfinite(xs)]
    kept = xs[np.unique(np.linspace(0, len(xs) - 1, MAX_TABLE_ROWS).round().astype(np.int64))] if len(xs) else xs
    columns = []
    for one in series:
        x, parts = as_floats(one.x), [as_floats(part) for part in (one.y, one.low, one.high) if part is not None]
        last = {float(x[at]): at for at in np.flatnonzero(np.isin(x, kept))}
        texts = {value: [float(part[at]) for part in parts] for value, at in last.items()}
        columns.append([_cell(texts.get(float(value))) for value in kept])
    rows = [(_x_text(value, x_names, is_time=is_time), *cells) for value, *cells in zip(kept, *columns, strict=True)]
    note = f"The table has {len(kept):,} of {len(xs):,} positions." if len(kept) < len(xs) else ""
    return (x_title, *(one.name for one in series)), tuple(rows), note


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    return _interval_text(*values) if len(values) == 3 else label.number(values[0])
