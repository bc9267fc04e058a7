"""Plots as SVG text: a metric by layer, calibration, predictions against values. Pure.

Colours are CSS variables (after Okabe and Ito, lighter on dark backgrounds), so a plot follows the viewer's colour
scheme. Colour is never the only difference: shapes or labels differ too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from varve.probe.models.metrics import TITLES, Calibration, Metric
from varve.probe.models.training import ModelResult

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
_NUM_COLOURS = 8
_WIDTH, _HEIGHT = 900, 390
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 190, 40, 56
_LABEL_PX = 17  # height of a label at the right


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


def layer_plot(results: Sequence[ModelResult], best: str, name: str, *, standalone: bool = False) -> str:
    """One metric of all models: layers as curves with intervals, combinations at the right, baselines as lines.

    Args:
        results: of a study.
        best: name of the model that the validation rows chose.
        name: of the metric.
        standalone: include the style, for a file.
    """
    baselines = [r for r in results if _is_baseline(r)]
    features = [r for r in results if not _is_baseline(r)]
    layered = [r for r in features if r.kind == "single" and r.layer is not None]
    others = [r for r in features if r not in layered]
    # A metric may be undefined: the AUC if the test rows are of one class.
    metrics = [r.test.metrics[name] for r in results if math.isfinite(r.test.metrics[name].value)]
    if not metrics:
        return ""
    y = _Scale(*_range(metrics, name), _HEIGHT - _BOTTOM, _TOP)
    layers = sorted({r.layer for r in layered if r.layer is not None})
    families = {family: at for at, family in enumerate(dict.fromkeys(r.family for r in [*layered, *others]))}
    xs = _positions(layers, layered, others, families)
    drawn = [_y_axis(y, TITLES[name]), _x_axis(layers, others, xs)]
    for family, at in families.items():
        curve = sorted((r for r in layered if r.family == family), key=lambda r: r.layer or 0)
        points = " ".join(f"{xs[r.name]},{y(r.test.metrics[name].value)}" for r in curve)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{_colour(at)}" stroke-width="2"/>')
        drawn += [_point(r, at, name, xs[r.name], y) for r in curve]
    drawn += [_point(r, families[r.family], name, xs[r.name], y) for r in others]
    drawn += [
        f'<circle class="best" cx="{xs[r.name]}" cy="{y(r.test.metrics[name].value)}" r="9"/>'
        for r in features
        if r.name == best
    ]
    drawn += [_baseline_lines(baselines, name, y), _legend(families, layered)]
    title = f"{TITLES[name]} of each layer, on the test rows"
    return _svg(_WIDTH, _HEIGHT, title, "".join(drawn), standalone=standalone)


def _is_baseline(result: ModelResult) -> bool:
    return result.kind in {"handcrafted", "baseline"} or result.name.endswith(" alone")


def _svg(width: int, height: int, title: str, content: str, *, standalone: bool = False) -> str:
    style = f"<style>{STYLE}</style>" if standalone else ""
    ground = '<rect width="100%" height="100%" fill="var(--ground)"/>' if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{style}{ground}{content}</svg>'
    )


def _range(metrics: Sequence[Metric], name: str) -> tuple[float, float]:
    """Ends of the axis. It does not go below R² -1 for single bad models, only if all are below."""
    ends = [value for metric in metrics for value in (metric.low, metric.high) if math.isfinite(value)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low or 1)
    bottom = -1.0 if name in {"r2", "spearman"} else 0.0
    top = math.inf if name in {"log_loss", "mae"} else 1.0
    return max(low - margin, bottom) if high >= bottom else low - margin, min(high + margin, top)


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers between two values."""
    rough = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 10) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _positions(
    layers: Sequence[int], layered: Sequence[ModelResult], others: Sequence[ModelResult], families: Mapping[str, int]
) -> dict[object, float]:
    """Layer, or name of a model → x. Features are shifted by 7 pixels each, so that their intervals do not overlap."""
    slots: list[object] = [*layers, *([None] if layers and others else []), *(r.name for r in others)]
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(slots))
    xs = {slot: round(_LEFT + step * (at + 0.5), 1) for at, slot in enumerate(slots) if slot is not None}
    return xs | {r.name: xs[r.layer] + 7 * families[r.family] for r in layered}


def _y_axis(y: _Scale, title: str) -> str:
    marks = _ticks(y.low, y.high)
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0] + 1e-12))) if len(marks) > 1 else 2
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="soft" x="{_LEFT - 8}" y="{y(mark) + 4}" text-anchor="end">{mark:.{min(decimals, 4)}f}</text>'
        for mark in marks
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return f'{lines}<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{escape(title)}</text>'


def _x_axis(layers: Sequence[int], others: Sequence[ModelResult], xs: Mapping[object, float]) -> str:
    bottom = _HEIGHT - _BOTTOM
    drawn = f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    drawn += "".join(_text(layer, xs[layer], bottom + 18, "soft") for layer in layers)
    if layers:
        middle = (xs[layers[0]] + xs[layers[-1]]) / 2
        drawn += _text("Layer (0: embeddings)" if 0 in layers else "Layer", middle, bottom + 42)
    short = {"concat": "all", "mix": "mix"}
    drawn += "".join(
        _text(short.get(r.kind, r.name) if len(r.name) > 12 else r.name, xs[r.name], bottom + 18, "soft")
        for r in others
    )
    if others and layers:
        middle = (xs[others[0].name] + xs[others[-1].name]) / 2
        drawn += _text("Combined", middle, bottom + 42)
    return drawn


def _text(text: object, x: float, y: float, style: str = "") -> str:
    of_class = f' class="{style}"' if style else ""
    return f'<text{of_class} x="{x}" y="{y}" text-anchor="middle">{escape(str(text))}</text>'


def _colour(number: int) -> str:
    return f"var(--c{number % _NUM_COLOURS})"


def _mark(number: int, x: float, y: float, title: str) -> str:
    """A dot whose shape and colour belong to the feature with this number."""
    size = 4.5
    tag, shape = (
        ("circle", f'cx="{x}" cy="{y}" r="{size}"'),
        ("rect", f'x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"'),
        ("path", f'd="M{x} {y - 5.5:.1f}l5.5 10h-11z"'),
        ("path", f'd="M{x} {y - 6:.1f}l6 6-6 6-6-6z"'),
    )[number % 4]
    return f'<{tag} {shape} fill="{_colour(number)}"><title>{escape(title)}</title></{tag}>'


def _point(result: ModelResult, number: int, name: str, x: float, y: _Scale) -> str:
    """A mark with its interval as a bar."""
    metric = result.test.metrics[name]
    ends = f'x1="{x}" x2="{x}" y1="{y(metric.low)}" y2="{y(metric.high)}"'
    bar = f'<line {ends} stroke="{_colour(number)}" stroke-width="1.6" opacity=".65"/>'
    return bar + _mark(number, x, y(metric.value), _tooltip(result, name))


def _tooltip(result: ModelResult, name: str) -> str:
    metric = result.test.metrics[name]
    return f"{result.name}: {metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def _baseline_lines(baselines: Sequence[ModelResult], name: str, y: _Scale) -> str:
    """Dashed lines with labels at the right, which are moved apart if they are close."""
    drawn, free = [], 0.0
    right = _WIDTH - _RIGHT
    for r in sorted(baselines, key=lambda r: y(r.test.metrics[name].value)):
        value = r.test.metrics[name].value
        line = y(value)
        label = max(line + 4, free)
        free = label + _LABEL_PX
        drawn.append(
            f'<line class="base" x1="{_LEFT}" x2="{right}" y1="{line}" y2="{line}">'
            f"<title>{escape(_tooltip(r, name))}</title></line>"
            f'<text class="soft" x="{right + 8}" y="{label}">{escape(r.name)} {value:.3f}</text>'
        )
    return "".join(drawn)


def _legend(families: Mapping[str, int], layered: Sequence[ModelResult]) -> str:
    shown = {r.family for r in layered}
    drawn, x = [], float(_LEFT)
    for family, at in families.items():
        if family in shown:
            drawn.append(_mark(at, x + 6, 16, family) + f'<text x="{x + 18}" y="20">{escape(family)}</text>')
            x += 40 + 8 * len(family)
    ring = f'<circle class="best" cx="{x + 8}" cy="16" r="7"/>'
    return "".join(drawn) + ring + f'<text x="{x + 22}" y="20">chosen on the validation rows</text>'


_SIDE, _EDGE, _PAD = 380, 56, 14  # of square plots
_MAX_DOTS = 2000


def _square(
    title: str, x_title: str, y_title: str, low: float, high: float, draw: Callable[[_Scale, _Scale], str]
) -> str:
    """A square plot, both axes from low to high, with grid, diagonal and what `draw` makes of the scales of x and y."""
    x, y = _Scale(low, high, _EDGE, _SIDE - _PAD), _Scale(low, high, _SIDE - _EDGE, _PAD)
    grid = "".join(
        f'<line class="grid" x1="{_EDGE}" x2="{_SIDE - _PAD}" y1="{y(mark)}" y2="{y(mark)}"/>'
        f'<text class="soft" x="{_EDGE - 7}" y="{y(mark) + 4}" text-anchor="end">{mark:g}</text>'
        f'<text class="soft" x="{x(mark)}" y="{_SIDE - _EDGE + 18}" text-anchor="middle">{mark:g}</text>'
        for mark in _ticks(low, high, 5)
    )
    middle = (_SIDE - _EDGE + _PAD) / 2
    titles = (
        f'<text x="{(_SIDE + _EDGE - _PAD) / 2}" y="{_SIDE - 14}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    diagonal = f'<line class="base" x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}"/>'
    return _svg(_SIDE, _SIDE, title, grid + titles + diagonal + draw(x, y))


def calibration_plot(calibration: Calibration) -> str:
    """How often predictions of each confidence are right; larger dots stand for more rows."""
    bins = list(zip(calibration.confidence, calibration.right, calibration.rows, strict=True))
    most = max(calibration.rows)

    def draw(x: _Scale, y: _Scale) -> str:
        line = " ".join(f"{x(confidence)},{y(right)}" for confidence, right, _ in bins)
        return f'<polyline points="{line}" fill="none" stroke="var(--c0)" stroke-width="2"/>' + "".join(
            f'<circle cx="{x(confidence)}" cy="{y(right)}" r="{3 + 6 * math.sqrt(rows / most):.1f}" fill="var(--c0)">'
            f"<title>{rows:,} rows: predicted {confidence:.1%}, right {right:.1%}</title></circle>"
            for confidence, right, rows in bins
        )

    titles = "Probability of the predicted class", "Share of rows that are right"
    return _square("Calibration on the test rows", *titles, 0, 1, draw)


def value_plot(predicted: Sequence[float], values: Sequence[float]) -> str:
    """Predictions against the label's values, for about 2,000 rows at most."""
    step = max(1, len(values) // _MAX_DOTS)
    predicted, values = predicted[::step], values[::step]
    low, high = min(*predicted, *values), max(*predicted, *values)
    margin = 0.04 * (high - low or 1)

    def draw(x: _Scale, y: _Scale) -> str:
        return "".join(
            f'<circle cx="{x(value)}" cy="{y(guess)}" r="2.6" fill="var(--c0)" opacity=".55"/>'
            for guess, value in zip(predicted, values, strict=True)
        )

    return _square("Predictions on the test rows", "Label", "Prediction", low - margin, high + margin, draw)
