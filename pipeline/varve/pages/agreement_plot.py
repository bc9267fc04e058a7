"""Pairs of values that should be equal, in a square plot with its diagonal.

Knows nothing of runs. Invariant: never fails on values, and draws at most 2,000 dots.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from varve.pages import label, svg_element
from varve.pages.axes import Frame, x_axis, y_axis
from varve.pages.figure import Figure, make_figure
from varve.pages.scale import Scale, as_floats, value_range

_SIDE, _EDGE, _PAD = 380, 62, 16
_MAX_DOTS = 2000


def agreement_plot(
    title: str,
    x_title: str,
    y_title: str,
    x: ArrayLike,
    y: ArrayLike,
    *,
    ends: tuple[float, float] | None = None,
    weights: ArrayLike | None = None,
    hints: Sequence[str] = (),
) -> Figure:
    """Draw pairs.

    Args:
        title: what the plot shows.
        x_title: below the x axis.
        y_title: along the y axis.
        x: (N,) values.
        y: (N,) values that should equal x.
        ends: of both axes; those of the values if None.
        weights: (N,) positive; larger ones have larger dots, and a line joins the dots. None: small dots.
        hints: (N,) texts of the dots on hover.
    """
    pairs = np.stack([as_floats(x), as_floats(y)], axis=1)
    kept = np.flatnonzero(np.isfinite(pairs).all(axis=1))[:: max(1, len(pairs) // _MAX_DOTS)][:_MAX_DOTS]
    low, high = ends or value_range([pairs[kept]], margin=0.04)
    frame = Frame(_EDGE, _SIDE - _PAD, _PAD, _SIDE - _EDGE)
    of_x, of_y = frame.x_scale(low, high), frame.y_scale(low, high)
    drawn = [y_axis(frame, of_y, y_title), x_axis(frame, of_x, x_title)]
    drawn.append(svg_element.line(of_x(low), of_y(low), of_x(high), of_y(high), "base"))
    sizes = None if weights is None else np.nan_to_num(as_floats(weights))[kept]
    drawn.append(_dots(pairs[kept], of_x, of_y, sizes, [str(hints[int(at)]) for at in kept] if hints else []))
    note = f"{len(kept):,} of {len(pairs):,} pairs are drawn." if len(kept) < len(pairs) else ""
    rows = ((label.number(one), label.number(other)) for one, other in pairs[kept].tolist())
    return make_figure(title, (_SIDE, _SIDE), "".join(drawn), (x_title, y_title), rows, note)


def _dots(pairs: np.ndarray, x: Scale, y: Scale, sizes: np.ndarray | None, hints: Sequence[str]) -> str:
    """Small dots or, with sizes, a line with dots whose area is the size."""
    places = [(x(one), y(other)) for one, other in pairs.tolist()]
    style = f'fill="{svg_element.colour(0)}"'
    if sizes is None:
        return "".join(_dot(place, 2.6, f'{style} opacity=".55"', "") for place in places)
    path = " ".join(f"{svg_element.px(at)},{svg_element.px(other)}" for at, other in places)
    radii = 3 + 6 * np.sqrt(np.maximum(sizes, 0) / max(sizes.max(initial=0), 1))
    texts = hints or [""] * len(places)
    return f'<polyline points="{path}" fill="none" stroke="{svg_element.colour(0)}" stroke-width="2"/>' + "".join(
        _dot(place, radius, style, hint) for place, radius, hint in zip(places, radii.tolist(), texts, strict=True)
    )


def _dot(place: tuple[float, float], radius: float, style: str, hint: str) -> str:
    ends = f'<circle cx="{svg_element.px(place[0])}" cy="{svg_element.px(place[1])}" r="{radius:.1f}" {style}'
    return f"{ends}>{svg_element.tooltip(hint)}</circle>" if hint else f"{ends}/>"
