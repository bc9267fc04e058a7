"""Plots as SVG text: the figure of each layer, calibration, predictions against values. Pure.

Colours are CSS variables (after Okabe and Ito, lighter on a dark ground), so a plot follows the viewer's colour scheme.
What differs in colour differs in shape or in words too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from varve.probe.models.metrics import TITLES, Calibration, Figure
from varve.probe.models.training import Result

STYLE = """
svg.plot { --ground: #fff; --ink: #1c2430; --soft: #5b6673; --line: #d5dae1; --c0: #0072b2; --c1: #b85c00;
  --c2: #00795a; --c3: #a8467f; --c4: #5f4bb6; --c5: #c2353b; --c6: #8a6d00; --c7: #6b7480;
  font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg.plot { --ground: #12161c; --ink: #e8ecf1; --soft: #a3aebb; --line: #323b47;
  --c0: #5cb3ec; --c1: #f0a03c; --c2: #3ecfa0; --c3: #e694c4; --c4: #b3a4f5; --c5: #ff8f87; --c6: #e3cf5b;
  --c7: #aab4c0; } }
svg.plot text { fill: var(--ink); } svg.plot .soft { fill: var(--soft); } svg.plot .axis { stroke: var(--soft); }
svg.plot .grid { stroke: var(--line); } svg.plot .base { stroke: var(--soft); stroke-dasharray: 5 4; }
svg.plot .best { fill: none; stroke: var(--ink); stroke-width: 1.6; }
"""
NUM_COLOURS = 8
_WIDTH, _HEIGHT = 900, 390
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 190, 40, 56
_ROW_PX = 17  # of a label at the right


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values → pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1)
        return round(self.start + share * (self.stop - self.start), 1)


def layer_plot(results: Sequence[Result], best: str, name: str, *, alone: bool = False) -> str:
    """One figure of every model: layers as curves with their intervals, combinations beside, baselines as lines.

    Args:
        results: of a study.
        best: the name of the model that the validation rows chose.
        name: of the figure.
        alone: as a file of its own, with its style inside.
    """
    layers = sorted({r.layer for r in results if r.layer is not None and r.kind == "single"})
    others = [r for r in results if r.kind in {"concat", "mix"} or (r.kind == "single" and r.layer is None)]
    bases = [r for r in results if r.kind in {"handcrafted", "baseline"} or r.name.endswith(" alone")]
    curved = [r for r in results if r.kind == "single" and r.layer is not None and not r.name.endswith(" alone")]
    others = [r for r in others if r not in bases]
    # A figure may be undefined: the AUC where the test rows are of one class.
    results = [r for r in results if math.isfinite(r.judged.figures[name].value)]
    if not results:
        return ""
    low, high = _range([r.judged.figures[name] for r in results], name)
    y = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    xs = _places(layers, others)
    families = list(dict.fromkeys(r.family for r in [*curved, *others]))
    drawn = [_y_axis(y, TITLES[name]), _x_axis(layers, others, families, xs)]
    drawn += [_curve([r for r in curved if r.family == family], at, name, xs, y) for at, family in enumerate(families)]
    drawn += [_point(r, families.index(r.family), name, xs[r.name], y) for r in others]
    for chosen in (r for r in [*curved, *others] if r.name == best):
        x = _x_of(chosen, families.index(chosen.family), xs)
        drawn.append(f'<circle class="best" cx="{x}" cy="{y(chosen.judged.figures[name].value)}" r="9"/>')
    drawn += [_base_lines(bases, name, y), _legend(families, curved)]
    title = f"{TITLES[name]} of each layer, on the test rows"
    return _svg(_WIDTH, _HEIGHT, title, "".join(drawn), alone=alone)


def _svg(width: int, height: int, title: str, content: str, *, alone: bool = False) -> str:
    style = f"<style>{STYLE}</style>" if alone else ""
    ground = '<rect width="100%" height="100%" fill="var(--ground)"/>' if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{style}{ground}{content}</svg>'
    )


def _range(figures: Sequence[Figure], name: str) -> tuple[float, float]:
    """Where the axis begins and ends; a model far below R² -1 is left off it, unless all are."""
    ends = [value for figure in figures for value in (figure.low, figure.high) if math.isfinite(value)]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low or 1)
    bottom = -1.0 if name in {"r2", "spearman"} else 0.0
    top = math.inf if name in {"log_loss", "mae"} else 1.0
    return max(low - room, bottom) if high >= bottom else low - room, min(high + room, top)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers between two values, about so many."""
    rough = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 10) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _places(layers: Sequence[int], others: Sequence[Result]) -> dict[object, float]:
    """Layer, or name of another model → x."""
    slots: list[object] = [*layers, *([None] if layers and others else []), *(r.name for r in others)]
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(slots))
    return {slot: round(_LEFT + step * (at + 0.5), 1) for at, slot in enumerate(slots) if slot is not None}


def _x_of(result: Result, family: int, xs: dict[object, float]) -> float:
    # Families stand side by side, so that their intervals can be told apart.
    return xs[result.layer] + 7 * family if result.kind == "single" and result.layer is not None else xs[result.name]


def _y_axis(y: _Scale, title: str) -> str:
    marks = ticks(y.low, y.high)
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0] + 1e-12))) if len(marks) > 1 else 2
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="soft" x="{_LEFT - 8}" y="{y(mark) + 4}" text-anchor="end">{mark:.{min(decimals, 4)}f}</text>'
        for mark in marks
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return f'{lines}<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{escape(title)}</text>'


def _x_axis(layers: Sequence[int], others: Sequence[Result], families: Sequence[str], xs: dict[object, float]) -> str:
    bottom = _HEIGHT - _BOTTOM
    told = f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    told += "".join(_word(at, xs[at], bottom + 18) for at in layers)
    if layers:
        middle = (xs[layers[0]] + xs[layers[-1]]) / 2
        zero = " (0: embeddings)" if 0 in layers else ""
        told += f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle">Layer{zero}</text>'
    short = {"concat": "all", "mix": "mix"}
    for r in others:
        word = short.get(r.kind, r.name) if r.family in families and len(r.name) > 12 else r.name
        told += _word(word, xs[r.name], bottom + 18)
    if others and layers:
        middle = (xs[others[0].name] + xs[others[-1].name]) / 2
        told += f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle">Combined</text>'
    return told


def _word(word: object, x: float, y: float) -> str:
    return f'<text class="soft" x="{x}" y="{y}" text-anchor="middle">{escape(str(word))}</text>'


def _mark(shape: int, x: float, y: float, colour: int, title: str) -> str:
    size = 4.5
    shapes = (
        f'<circle cx="{x}" cy="{y}" r="{size}"',
        f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"',
        f'<path d="M{x} {y - 5.5:.1f}l5.5 10h-11z"',
        f'<path d="M{x} {y - 6:.1f}l6 6-6 6-6-6z"',
    )
    tag = "circle" if shape % 4 == 0 else "rect" if shape % 4 == 1 else "path"
    return f'{shapes[shape % 4]} fill="var(--c{colour % NUM_COLOURS})"><title>{escape(title)}</title></{tag}>'


def _told(result: Result, name: str) -> str:
    figure = result.judged.figures[name]
    return f"{result.name}: {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def _bar(figure: Figure, colour: int, x: float, y: _Scale) -> str:
    ends = f'x1="{x}" x2="{x}" y1="{y(figure.low)}" y2="{y(figure.high)}"'
    return f'<line {ends} stroke="var(--c{colour % NUM_COLOURS})" stroke-width="1.6" opacity=".65"/>'


def _point(result: Result, family: int, name: str, x: float, y: _Scale) -> str:
    figure = result.judged.figures[name]
    return _bar(figure, family, x, y) + _mark(family, x, y(figure.value), family, _told(result, name))


def _curve(results: Sequence[Result], family: int, name: str, xs: dict[object, float], y: _Scale) -> str:
    found = sorted(results, key=lambda r: r.layer or 0)
    places = [(_x_of(r, family, xs), y(r.judged.figures[name].value)) for r in found]
    line = " ".join(f"{px},{py}" for px, py in places)
    drawn = f'<polyline points="{line}" fill="none" stroke="var(--c{family % NUM_COLOURS})" stroke-width="2"/>'
    return drawn + "".join(_point(r, family, name, px, y) for r, (px, _) in zip(found, places, strict=True))


def _base_lines(bases: Sequence[Result], name: str, y: _Scale) -> str:
    """Dashed lines, each with its name at the right, moved apart where they are close."""
    found = sorted(bases, key=lambda r: y(r.judged.figures[name].value))
    drawn, free = [], 0.0
    for r in found:
        at = y(r.judged.figures[name].value)
        label = max(at + 4, free)
        free = label + _ROW_PX
        right = _WIDTH - _RIGHT
        drawn.append(
            f'<line class="base" x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}">'
            f"<title>{escape(_told(r, name))}</title></line>"
            f'<text class="soft" x="{right + 8}" y="{label}">{escape(r.name)} {r.judged.figures[name].value:.3f}</text>'
        )
    return "".join(drawn)


def _legend(families: Sequence[str], curved: Sequence[Result]) -> str:
    named = [family for family in families if any(r.family == family for r in curved)]
    drawn, x = [], float(_LEFT)
    for family in named:
        at = families.index(family)
        drawn.append(_mark(at, x + 6, 16, at, family) + f'<text x="{x + 18}" y="20">{escape(family)}</text>')
        x += 40 + 8 * len(family)
    ring = f'<circle class="best" cx="{x + 8}" cy="16" r="7"/>'
    return "".join(drawn) + ring + f'<text x="{x + 22}" y="20">chosen on the validation rows</text>'


_SIDE, _EDGE, _PAD = 380, 56, 14


def _square(title: str, across: str, up: str, low: float, high: float, inner: str) -> tuple[str, _Scale, _Scale]:
    """(a square plot with both axes from low to high, x, y); `inner` is drawn by the caller with these scales."""
    x, y = _Scale(low, high, _EDGE, _SIDE - _PAD), _Scale(low, high, _SIDE - _EDGE, _PAD)
    grid = "".join(
        f'<line class="grid" x1="{_EDGE}" x2="{_SIDE - _PAD}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="soft" x="{_EDGE - 7}" y="{y(mark) + 4}" text-anchor="end">{mark:g}</text>'
        f'<text class="soft" x="{x(mark)}" y="{_SIDE - _EDGE + 18}" text-anchor="middle">{mark:g}</text>'
        for mark in ticks(low, high, 5)
    )
    middle = (_SIDE - _EDGE + _PAD) / 2
    words = (
        f'<text x="{(_SIDE + _EDGE - _PAD) / 2}" y="{_SIDE - 14}" text-anchor="middle">{escape(across)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    diagonal = f'<line class="base" x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}"/>'
    return _svg(_SIDE, _SIDE, title, grid + words + diagonal + inner), x, y


def calibration_plot(calibration: Calibration) -> str:
    """How often predictions of each confidence are right; dots grow with their rows."""
    _, x, y = _square("", "", "", 0, 1, "")
    most = max(calibration.rows)
    places = list(zip(calibration.confidence, calibration.right, calibration.rows, strict=True))
    line = " ".join(f"{x(sure)},{y(right)}" for sure, right, _ in places)
    drawn = f'<polyline points="{line}" fill="none" stroke="var(--c0)" stroke-width="2"/>' + "".join(
        f'<circle cx="{x(sure)}" cy="{y(right)}" r="{3 + 6 * math.sqrt(rows / most):.1f}" fill="var(--c0)">'
        f"<title>{rows:,} rows: {sure:.1%} sure, {right:.1%} right</title></circle>"
        for sure, right, rows in places
    )
    words = "Probability of the predicted class", "Share of rows that are right"
    return _square("Calibration on the test rows", *words, 0, 1, drawn)[0]


def value_plot(found: Sequence[float], values: Sequence[float]) -> str:
    """Predictions against the label's values."""
    ends = [*found, *values]
    room = 0.04 * (max(ends) - min(ends) or 1)
    low, high = min(ends) - room, max(ends) + room
    _, x, y = _square("", "", "", low, high, "")
    dots = "".join(
        f'<circle cx="{x(value)}" cy="{y(guess)}" r="2.6" fill="var(--c0)" opacity=".55"/>'
        for guess, value in zip(found, values, strict=True)
    )
    return _square("Predictions on the test rows", "Label", "Prediction", low, high, dots)[0]
