"""Renders the results of a study as one HTML document that needs no network.

Knows nothing of training. Invariant: texts of rows are escaped in HTML and in JSON, so they are never markup.
"""

import json
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from varve.errors import one_line
from varve.probe.data.split import TEST
from varve.probe.models.bag_of_words import read_texts
from varve.probe.models.metrics import TITLES, Calibration
from varve.probe.models.study import Study
from varve.probe.report import svg_plots

_MAX_ERRORS = 20
_MAX_SHOWN_CLASSES = 30
_SNIPPET_CHARACTERS = 400
_DOT_CHARACTERS = 110


def render_page(study: Study, content: dict[str, Any], headline: str) -> str:
    """The document.

    Args:
        study: results to show.
        content: the same as in probe.json.
        headline: the result in one to three sentences.
    """
    rows, best = study.rows, study.best
    template = files("varve.probe.report").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    names = list(best.test.metrics)
    target = rows.target[rows.in_split(TEST)]
    errors = _largest_errors(best.scores, target, classes=rows.is_classification)
    texts, no_texts = read_texts(study.texts, rows, np.concatenate([errors, study.settings.map_rows]))
    return environment.from_string(template).render(
        content=content,
        headline=headline,
        titles=TITLES,
        names=names,
        table=sorted(content["results"], key=_table_order),
        style=svg_plots.STYLE,
        plots={name: svg_plots.layer_plot(study.results, best.name, name) for name in names},
        order=[study.primary, *(name for name in names if name != study.primary)],
        confusion=_confusion(content),
        calibration=svg_plots.calibration_plot(Calibration(**content["calibration"])) if rows.is_classification else "",
        values="" if rows.is_classification else svg_plots.value_plot(best.scores[:, 0].tolist(), target.tolist()),
        errors=_error_table(study, target, errors, texts),
        no_texts=no_texts,
        map_json=_script_json(_map(study, target, texts)),
    )


def _table_order(result: dict[str, Any]) -> tuple[bool, bool, str, int]:
    """The layers of each feature together, then combinations, then baselines."""
    base = result["kind"] in {"handcrafted", "baseline"} or result["name"].endswith(" alone")
    return base, result["kind"] in {"concat", "mix"}, "" if base else result["family"], result["layer"] or 0


def _script_json(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element that holds it."""
    escaped = json.dumps(content, separators=(",", ":"))
    return escaped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _confusion(content: dict[str, Any]) -> dict[str, Any]:
    """The classes with most test rows, the counts and shares of each, and the most frequent confusions."""
    if not content["classes"]:
        return {}
    table, classes = np.array(content["confusion"]), content["classes"]
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
    classes, table = study.rows.classes, []
    for number in errors.tolist():
        scores = study.best.scores[number]
        best = int(scores.argmax())
        table.append(
            {
                "text": _cut(texts.get(number, ""), _SNIPPET_CHARACTERS),
                "label": classes[target[number]] if classes else f"{target[number]:.4g}",
                "predicted": classes[best] if classes else f"{scores[0]:.4g}",
                "size": f"{scores[best]:.0%}".replace("%", " %") if classes else f"{scores[0] - target[number]:+.4g}",
            }
        )
    return table


def _cut(text: str, limit: int) -> str:
    text = one_line(text, None)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _map(study: Study, target: NDArray, texts: dict[int, str]) -> dict[str, Any]:
    """Positions of the map's rows for each feature, scaled to -1 to 1, with their labels and texts."""
    shown = study.settings.map_rows
    layers, previous = [], {}
    for result in study.results:
        if result.map is None:
            continue
        positions = _align(result.map, previous.get(result.family))
        previous[result.family] = positions
        largest = float(np.abs(positions).max()) or 1.0
        layers.append(
            {
                "name": result.name,
                "family": result.family,
                "layer": result.layer,
                "places": np.round(positions / largest, 3).ravel().tolist(),
                "variance": [round(share, 4) for share in result.variance],
            }
        )
    return {
        "layers": layers,
        "classes": list(study.rows.classes),
        "labels": [round(float(value), 6) for value in target[shown]],
        "texts": [_cut(texts[row], _DOT_CHARACTERS) for row in shown.tolist() if row in texts],
        "best": study.best.name,
    }


def _align(positions: NDArray[np.float32], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Rotate and mirror a layer to be closest to the previous one, so that the eye can follow the dots."""
    return positions if previous is None else positions @ orthogonal_procrustes(positions, previous)[0]
