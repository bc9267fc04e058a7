"""Renders the results of a study as one HTML document that needs no network.

Knows nothing of training. Invariant: texts of rows are escaped in HTML and in JSON, so they are never markup.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.pages.figure import Figure
from varve.pages.label import label
from varve.pages.page import render
from varve.pages.scatter_map import MapLayer, map_json
from varve.probe.data.split import TEST
from varve.probe.models.bag_of_words import read_texts
from varve.probe.models.metrics import TITLES, Calibration
from varve.probe.models.study import Study
from varve.probe.report.layer_plot import calibration_plot, layer_plot, value_plot

_MAX_ERRORS = 20
_MAX_SHOWN_CLASSES = 30
_SNIPPET_CHARACTERS, _NAME_CHARACTERS = 400, 40


def render_page(study: Study, content: dict[str, Any], headline: str) -> str:
    """The document.

    Args:
        study: results to show.
        content: the same as in probe.json.
        headline: the result in one to three sentences.
    """
    rows, best = study.rows, study.best
    names = list(best.test.metrics)
    target = rows.target[rows.in_split(TEST)]
    errors = _largest_errors(best.scores, target, classes=rows.is_classification)
    texts, no_texts = read_texts(study.texts, rows, np.concatenate([errors, study.settings.map_rows]))
    return render(
        "varve.probe.report",
        "report.html.jinja",
        content=content,
        headline=headline,
        titles=TITLES,
        names=names,
        table=sorted(content["results"], key=_table_order),
        plots={name: layer_plot(study.results, best.name, name) for name in names},
        order=[study.primary, *(name for name in names if name != study.primary)],
        confusion=_confusion(content),
        agreement=_agreement(study, content, target),
        errors=_error_table(study, target, errors, texts),
        no_texts=no_texts,
        map_json=_map(study, target, texts),
    )


def _agreement(study: Study, content: dict[str, Any], target: NDArray) -> Figure:
    """Calibration of classes, or predictions against values."""
    if study.rows.is_classification:
        return calibration_plot(Calibration(**content["calibration"]))
    return value_plot(study.best.scores[:, 0].tolist(), target.tolist())


def _table_order(result: dict[str, Any]) -> tuple[bool, bool, str, int]:
    """The layers of each feature together, then combinations, then baselines."""
    base = result["kind"] in {"handcrafted", "baseline"} or result["name"].endswith(" alone")
    return base, result["kind"] in {"concat", "mix"}, "" if base else result["family"], result["layer"] or 0


def _confusion(content: dict[str, Any]) -> dict[str, Any]:
    """The classes with most test rows, the counts and shares of each, and the most frequent confusions."""
    if not content["classes"]:
        return {}
    table = np.array(content["confusion"])
    classes = [label(name, _NAME_CHARACTERS) for name in content["classes"]]
    order = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:_MAX_SHOWN_CLASSES])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    wrong = table * (1 - np.eye(len(classes), dtype=np.int64))
    worst = [divmod(int(at), len(classes)) for at in np.argsort(-wrong, axis=None, kind="stable")[:5]]
    return {
        "classes": [classes[at] for at in order],
        "rows": [[(int(table[i, j]), float(shares[i, j])) for j in order] for i in order],
        "left_out": len(classes) - len(order),
        "worst": [(classes[i], classes[j], int(table[i, j])) for i, j in worst if wrong[i, j]],
    }


def _largest_errors(scores: NDArray, target: NDArray, *, classes: bool) -> NDArray[np.integer]:
    """Numbers of the test rows with the largest errors of the best model, the largest first."""
    if not classes:
        return np.argsort(-np.abs(scores[:, 0] - target), kind="stable")[:_MAX_ERRORS]
    order = np.argsort(scores[np.arange(len(target)), target], kind="stable")[:_MAX_ERRORS]
    return order[scores[order].argmax(axis=1) != target[order]]


def _error_table(
    study: Study, target: NDArray, errors: NDArray[np.integer], texts: dict[int, str]
) -> list[dict[str, str]]:
    classes, table = [label(name, _NAME_CHARACTERS) for name in study.rows.classes], []
    for number in errors.tolist():
        scores = study.best.scores[number]
        best = int(scores.argmax())
        table.append(
            {
                "text": label(texts.get(number, ""), _SNIPPET_CHARACTERS),
                "label": classes[target[number]] if classes else f"{target[number]:.4g}",
                "predicted": classes[best] if classes else f"{scores[0]:.4g}",
                "size": f"{scores[best]:.0%}".replace("%", " %") if classes else f"{scores[0] - target[number]:+.4g}",
            }
        )
    return table


def _map(study: Study, target: NDArray, texts: dict[int, str]) -> str:
    """JSON of the map's rows for each feature, with their labels and texts."""
    shown = study.settings.map_rows
    layers = [
        MapLayer(result.name, result.family, result.layer, result.map, result.variance)
        for result in study.results
        if result.map is not None
    ]
    return map_json(
        layers,
        classes=study.rows.classes,
        labels=target[shown].tolist(),
        texts=[texts.get(row, "") for row in shown.tolist()],
        selected=study.best.name,
    )
