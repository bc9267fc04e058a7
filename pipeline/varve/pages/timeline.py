"""What each lane did over time: bars of kinds that differ in colour, height and pattern.

Knows nothing of runs. Invariant: never fails on times or names, and its size is bounded: lanes that would be lower than
five pixels share a row, and of many bars each column of pixels shows its most important kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.pages import label, svg_element
from varve.pages.axes import WIDTH, Frame, Span, shaded, x_axis
from varve.pages.figure import MAX_TABLE_ROWS, Figure, make_figure
from varve.pages.scale import Scale

__all__ = ["KINDS", "Bar", "Lane", "Span", "timeline"]

KINDS = ("idle", "start", "work", "slow", "lost")  # later kinds cover earlier ones
_STYLES = {  # colour, share of the row's height, hatched, name in the legend
    "idle": (7, 0.2, False, "idle"),
    "start": (6, 0.5, False, "start"),
    "work": (0, 1.0, False, "work"),
    "slow": (1, 1.0, True, "slow"),
    "lost": (5, 1.0, True, "lost"),
}
_MAX_ROWS, _MAX_ROW_PX, _MIN_HEIGHT_PX, _MAX_HEIGHT_PX = 100, 26, 60, 520
_MAX_SINGLE_BARS, _MAX_COLUMNS = 600, 24_000


@dataclass(frozen=True, slots=True)
class Bar:
    """What a lane did from `start_s` to `stop_s`, seconds; `kind` is one of KINDS; `text` is shown on hover."""

    start_s: float
    stop_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A name and its bars, in any order."""

    name: str
    bars: Sequence[Bar]


def timeline(title: str, lanes: Sequence[Lane], *, end_s: float, spans: Sequence[Span] = ()) -> Figure:
    """Draw lanes over time.

    Args:
        title: what the plot shows.
        lanes: from top to bottom.
        end_s: end of the axis, seconds since its start.
        spans: shaded ranges of time.
    """
    width = math.ceil(len(lanes) / _MAX_ROWS) or 1
    rows = [lanes[at : at + width] for at in range(0, len(lanes), width)]
    names = [_row_name(row) for row in rows]
    present = {bar.kind if bar.kind in _STYLES else "work" for lane in lanes for bar in lane.bars}
    definition, fill = svg_element.hatch(title)
    legend, top = _legend([kind for kind in reversed(KINDS) if kind in present], fill)
    row_px = min(_MAX_ROW_PX, _MAX_HEIGHT_PX / max(len(rows), 1))
    left = 20 + max((label.width_px(name) for name in names), default=0)
    top += 16 if spans else 0
    frame = Frame(left, WIDTH - 30, top + 8, top + 8 + max(row_px * len(rows), _MIN_HEIGHT_PX if spans else row_px))
    x = frame.x_scale(0.0, end_s if math.isfinite(end_s) and end_s > 0 else 1.0)
    single = sum(len(lane.bars) for lane in lanes) <= _MAX_SINGLE_BARS and width == 1
    drawn = [
        definition,
        legend,
        shaded(frame, x, spans),
        x_axis(frame, x, "Time since the start", is_time=True),
    ]
    drawn.append(_lane_names(names, frame, row_px))
    for at, row in enumerate(rows):
        y = frame.top + at * row_px
        bars = [bar for lane in row for bar in lane.bars]
        drawn.append(_single(bars, x, y, row_px, fill) if single else _columns(bars, x, y, row_px, fill, len(rows)))
    note = f"Each row holds {width} lanes; a column shows the last in {', '.join(KINDS)}." if width > 1 else ""
    header, table = _table(lanes)
    return make_figure(title, (WIDTH, frame.bottom + 52), "".join(drawn), header, table, note)


def _row_name(row: Sequence[Lane]) -> str:
    first = label.label(row[0].name, 22)
    return first if len(row) == 1 else f"{first} …"


def _legend(kinds: Sequence[str], fill: str) -> tuple[str, float]:
    keys = [(_shape(kind, -8, -7, 16, 14, fill, ""), _STYLES[kind][3]) for kind in kinds]
    return svg_element.legend(keys, 20, WIDTH - 24)


def _shape(kind: str, x: float, y: float, width: float, height: float, fill: str, hint: str) -> str:
    """A bar of a kind within a row."""
    number, share, is_hatched, _ = _STYLES[kind]
    inner = max(height * share, 1.5)
    place = x, y + (height - inner) / 2, width, inner
    bar = svg_element.rect(*place, f'fill="{svg_element.colour(number)}"', hint)
    # The hatch is above its bar, so the text on hover belongs to it too.
    return bar + svg_element.rect(*place, f'fill="{fill}" opacity=".55"', hint) if is_hatched else bar


def _lane_names(names: Sequence[str], frame: Frame, row_px: float) -> str:
    every = math.ceil(15 / row_px)
    return "".join(
        svg_element.text(names[at], frame.left - 8, frame.top + (at + 0.5) * row_px + 4.5, "soft", "end")
        for at in range(0, len(names), every)
    )


def _single(bars: Sequence[Bar], x: Scale, y: float, row_px: float, fill: str) -> str:
    """One shape per bar, with its text on hover."""
    gap = 4 if row_px > 14 else 1
    drawn = []
    for bar in sorted(bars, key=_importance):
        start, stop = _ends(bar, x)
        times = f"{label.duration(bar.start_s)} to {label.duration(bar.stop_s)}"
        hint = f"{label.label(bar.text, 200)} ({_kind(bar)}, {times})"
        drawn.append(_shape(_kind(bar), start, y + gap / 2, max(stop - start - 0.5, 1), row_px - gap, fill, hint))
    return "".join(drawn)


def _columns(bars: Sequence[Bar], x: Scale, y: float, row_px: float, fill: str, num_rows: int) -> str:
    """One path per kind; each column of pixels has the most important kind of its bars."""
    num = max(40, min(int(x.stop - x.start), _MAX_COLUMNS // num_rows))
    column_px, kinds = (x.stop - x.start) / num, np.full(num, -1)
    for number, kind in enumerate(KINDS):
        ends = np.array([_ends(bar, x) for bar in bars if _kind(bar) == kind]).reshape(-1, 2)
        kinds[_covered((ends - x.start) / column_px, num)] = number
    gap, drawn = (4 if row_px > 14 else 1), []
    for number, kind in enumerate(KINDS):
        runs = _runs(kinds == number)
        colour_number, share, is_hatched, _ = _STYLES[kind]
        height = max((row_px - gap) * share, 1.5)
        top = y + (row_px - height) / 2
        path = "".join(
            f"M{svg_element.px(x.start + a * column_px)} {svg_element.px(top)}h{svg_element.px((b - a) * column_px)}"
            f"v{svg_element.px(height)}H{svg_element.px(x.start + a * column_px)}z"
            for a, b in runs
        )
        fills = [f'fill="{svg_element.colour(colour_number)}"', *([f'fill="{fill}" opacity=".55"'] * is_hatched)]
        drawn += [f'<path d="{path}" {style}>{svg_element.tooltip(kind)}</path>' for style in fills if path]
    return "".join(drawn)


def _covered(ends: NDArray[np.float64], num: int) -> NDArray[np.bool_]:
    """Columns that at least one range touches."""
    starts = np.clip(np.floor(ends[:, 0]), 0, num - 1).astype(np.int64)
    stops = np.clip(np.ceil(ends[:, 1]), starts + 1, num).astype(np.int64)
    change = np.bincount(starts, minlength=num + 1) - np.bincount(stops, minlength=num + 1)
    return np.cumsum(change)[:num] > 0


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of each run of true values."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(change[::2].tolist(), change[1::2].tolist(), strict=True))


def _ends(bar: Bar, x: Scale) -> tuple[float, float]:
    """Pixels; a bar without an end reaches the end of the axis."""
    start = x(bar.start_s) if math.isfinite(bar.start_s) else x.start
    stop = x(bar.stop_s) if math.isfinite(bar.stop_s) else x.stop
    return start, max(start, stop)


def _kind(bar: Bar) -> str:
    return bar.kind if bar.kind in _STYLES else "work"


def _importance(bar: Bar) -> int:
    return KINDS.index(_kind(bar))


def _table(lanes: Sequence[Lane]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Each bar or, of many, the seconds of each kind by lane."""
    bars = [(lane, bar) for lane in lanes for bar in sorted(lane.bars, key=lambda bar: bar.start_s)]
    if len(bars) <= MAX_TABLE_ROWS:
        rows = ((lane.name, _kind(bar), label.duration(bar.start_s), label.duration(bar.stop_s), bar.text)
                for lane, bar in bars)  # fmt: skip
        return ("Lane", "Kind", "From", "To", "What"), tuple(rows)
    return ("Lane", "Bars", *KINDS), tuple(_sums(lane) for lane in lanes[:MAX_TABLE_ROWS])


def _sums(lane: Lane) -> tuple[str, ...]:
    sums: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for bar in lane.bars:
        length = bar.stop_s - bar.start_s
        sums[_kind(bar)] += length if math.isfinite(length) and length > 0 else 0.0
    return lane.name, f"{len(lane.bars):,}", *map(label.duration, sums.values())
