"""The plots of a probe: a metric by layer, calibration, predictions against values. Knows not how plots are drawn."""

import math
from collections.abc import Sequence

from varve.pages.agreement_plot import agreement_plot
from varve.pages.figure import Figure
from varve.pages.line_plot import Series, line_plot
from varve.probe.models.metrics import TITLES, Calibration, Metric
from varve.probe.models.training import ModelResult

_SHORT = {"concat": "all", "mix": "mix"}
_RING = "chosen on the validation rows"


def layer_plot(results: Sequence[ModelResult], best: str, name: str) -> Figure:
    """One metric of all models: layers as curves with intervals, combinations at the right, baselines as lines.

    Args:
        results: of a study.
        best: name of the model that the validation rows chose.
        name: of the metric.
    """
    features = [r for r in results if not _is_baseline(r)]
    layered = [r for r in features if r.kind == "single" and r.layer is not None]
    others = [r for r in features if r not in layered]
    xs, x_names = _positions(layered, others)
    families = dict.fromkeys(r.family for r in [*layered, *others])
    series = [_series(family, [r for r in features if r.family == family], xs, name) for family in families]
    ring = next(((r.family, xs[r.name], _RING) for r in features if r.name == best), None)
    return line_plot(
        f"{TITLES[name]} of each layer, on the test rows",
        _x_title(layered, others),
        TITLES[name],
        series,
        y_range=_range([r.test.metrics[name] for r in results], name),
        x_names=x_names,
        levels=[(r.test.metrics[name].value, r.name) for r in results if _is_baseline(r)],
        ring=ring,
    )


def calibration_plot(calibration: Calibration) -> Figure:
    """How often predictions of each confidence are right; larger dots mean more rows."""
    bins = list(zip(calibration.confidence, calibration.right, calibration.rows, strict=True))
    return agreement_plot(
        "Calibration on the test rows",
        "Probability of the predicted class",
        "Share of rows that are right",
        calibration.confidence,
        calibration.right,
        ends=(0, 1),
        weights=calibration.rows,
        hints=[f"{rows:,} rows: predicted {confidence:.1%}, right {right:.1%}" for confidence, right, rows in bins],
    )


def value_plot(predicted: Sequence[float], values: Sequence[float]) -> Figure:
    """Predictions against the label's values."""
    return agreement_plot("Predictions on the test rows", "Label", "Prediction", values, predicted)


def _is_baseline(result: ModelResult) -> bool:
    return result.kind in {"handcrafted", "baseline"} or result.name.endswith(" alone")


def _positions(
    layered: Sequence[ModelResult], others: Sequence[ModelResult]
) -> tuple[dict[str, float], dict[float, str]]:
    """Name of a model → x, and the texts of the x axis: layers in equal steps, a gap, then combinations."""
    layers = sorted({r.layer for r in layered if r.layer is not None})
    at = {layer: float(place) for place, layer in enumerate(layers)}
    gap = len(layers) + (1 if layers else 0)
    xs = {r.name: at[r.layer] for r in layered if r.layer is not None}
    xs |= {r.name: float(gap + place) for place, r in enumerate(others)}
    texts = {at[layer]: str(layer) for layer in layers}
    return xs, texts | {xs[r.name]: _short(r) for r in others}


def _short(result: ModelResult) -> str:
    return _SHORT.get(result.kind, result.name) if len(result.name) > 12 else result.name


def _x_title(layered: Sequence[ModelResult], others: Sequence[ModelResult]) -> str:
    title = "Layer (0: embeddings)" if any(r.layer == 0 for r in layered) else "Layer"
    return f"{title}, then combinations" if layered and others else title if layered else "Features"


def _series(family: str, models: Sequence[ModelResult], xs: dict[str, float], name: str) -> Series:
    """One curve of the layers; combinations of the same family are marks at its right."""
    ordered = sorted(models, key=lambda r: xs[r.name])
    metrics = [r.test.metrics[name] for r in ordered]
    combined = [xs[r.name] for r in ordered if r.kind != "single" or r.layer is None]
    return Series(
        family,
        [xs[r.name] for r in ordered],
        [metric.value for metric in metrics],
        [metric.low for metric in metrics],
        [metric.high for metric in metrics],
        [r.name for r in ordered],
        min(combined, default=math.inf),
    )


def _range(metrics: Sequence[Metric], name: str) -> tuple[float, float] | None:
    """Ends of the axis. It does not go below R² -1 for single bad models, only if all are below."""
    ends = [value for metric in metrics for value in (metric.low, metric.high, metric.value) if math.isfinite(value)]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low or 1)
    bottom = -1.0 if name in {"r2", "spearman"} else 0.0
    top = math.inf if name in {"log_loss", "mae"} else 1.0
    return max(low - margin, bottom) if high >= bottom else low - margin, min(high + margin, top)
