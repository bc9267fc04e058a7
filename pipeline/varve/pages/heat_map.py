"""A square matrix of values as cells whose colour is the value.

Knows nothing of runs. Invariant: never fails on labels or values; of matrices of more than 48 rows, blocks of cells
are drawn as their mean.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varve.pages import label, svg_element
from varve.pages.axes import WIDTH
from varve.pages.figure import Figure, make_figure

_MAX_CELLS, _MAX_TABLE = 48, 32  # per side
_SIDE_PX, _WITH_VALUES = 560, 16
_KEY_PX, _KEY_STEPS = 16, 20


def heat_map(title: str, labels: Sequence[str], values: ArrayLike, *, low: float = 0.0, high: float = 1.0) -> Figure:
    """Draw a matrix.

    Args:
        title: what the plot shows.
        labels: (L,) of rows and columns.
        values: (L, L); NaN cells are hatched.
        low: value without colour.
        high: value of the full colour.
    """
    matrix = np.asarray(values, np.float64).reshape(len(labels), len(labels))
    cells, names = _merged(matrix, [label.label(name, 20) for name in labels])
    left = 16 + max((label.width_px(name) for name in names), default=0)
    size = min(_SIDE_PX / max(len(names), 1), 46)
    definition, fill = svg_element.hatch(title)
    drawn = [definition, _names(names, left, size)]
    for i in range(len(names)):
        drawn += [_cell(cells[i, j], f"{names[i]}, {names[j]}", left + j * size, i * size, size, fill, low, high)
                  for j in range(len(names))]  # fmt: skip
    drawn.append(_key(left + size * len(names) + 36, low, high))
    bottom = max(size * len(names), 170) + left
    header, rows, note = _table(labels, matrix)
    if len(names) < len(labels):
        note = f"Each cell is the mean of a block of the {len(labels):,} rows and columns. {note}".strip()
    return make_figure(title, (WIDTH, bottom), "".join(drawn), header, rows, note)


def _merged(matrix: NDArray[np.float64], names: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    """At most _MAX_CELLS rows and columns, each the mean of a block."""
    if len(names) <= _MAX_CELLS:
        return matrix, names
    width = math.ceil(len(names) / _MAX_CELLS)
    starts = range(0, len(names), width)
    finite, filled = np.isfinite(matrix), np.where(np.isfinite(matrix), np.clip(matrix, -1e300, 1e300), 0.0)
    sums, counts = (np.add.reduceat(np.add.reduceat(part, starts, 0), starts, 1) for part in (filled, finite * 1.0))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means, [f"{names[at].removesuffix('…')}…" for at in starts]


def _names(names: list[str], left: float, size: float) -> str:
    """Row labels at the left and column labels below; each k-th if they have no room."""
    every, below = math.ceil(15 / size), size * len(names) + 8
    return "".join(
        svg_element.text(names[at], left - 8, (at + 0.5) * size + 4.5, "soft", "end")
        + svg_element.turned_text(names[at], left + (at + 0.5) * size + 4.5, below, "soft", "end")
        for at in range(0, len(names), every)
    )


def _cell(value: float, name: str, x: float, y: float, size: float, fill: str, low: float, high: float) -> str:
    gap = 1 if size > 8 else 0
    hint = f"{name}: {label.number(value)}"
    if not math.isfinite(value):
        ground = svg_element.rect(x, y, size - gap, size - gap, 'fill="var(--line)"')
        return ground + svg_element.rect(x, y, size - gap, size - gap, f'fill="{fill}"', hint)
    share = min(max((value - low) / (high - low or 1), 0.0), 1.0)
    cell = svg_element.rect(x, y, size - gap, size - gap, f'class="heat" opacity="{0.04 + 0.9 * share:.2f}"', hint)
    if size < _SIDE_PX / _WITH_VALUES:
        return cell
    style = "cell on" if share > 0.55 else "cell"
    return cell + svg_element.text(label.formatted(value, "{:.2f}"), x + size / 2, y + size / 2 + 4, style)


def _key(x: float, low: float, high: float) -> str:
    """The colours of the values from high to low."""
    step = 140 / _KEY_STEPS
    drawn = [
        svg_element.rect(x, 14 + at * step, _KEY_PX, step + 0.3, f'class="heat" opacity="{0.94 - 0.9 * at / 19:.2f}"')
        for at in range(_KEY_STEPS)
    ]
    ends = ((high, 22.0), ((low + high) / 2, 88.0), (low, 154.0))
    return "".join(drawn) + "".join(
        svg_element.text(label.number(value), x + _KEY_PX + 8, y, "soft", "start") for value, y in ends
    )


def _table(
    labels: Sequence[str], matrix: NDArray[np.float64]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str]:
    shown = min(len(labels), _MAX_TABLE)
    texts = [[label.formatted(value, "{:.3f}") for value in row[:shown]] for row in matrix[:shown].tolist()]
    rows = tuple((str(name), *cells) for name, cells in zip(labels[:shown], texts, strict=True))
    note = f"The table has the first {shown} of {len(labels):,} rows and columns." if shown < len(labels) else ""
    return ("", *map(str, labels[:shown])), rows, note
