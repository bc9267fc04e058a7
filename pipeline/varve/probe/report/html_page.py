"""What a study found as one HTML document that needs no network.

Knows nothing of training. Invariant: texts of rows reach the page as escaped words and as JSON, never as markup.
"""

import json
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.errors import one_line
from varve.probe.data.split import TEST
from varve.probe.models.bag_of_words import read_texts
from varve.probe.models.metrics import TITLES, Calibration
from varve.probe.models.study import Study
from varve.probe.report import svg_plots

_MOST_WRONG = 20
_MAX_SHOWN_CLASSES = 30
_SNIPPET = 400
_POINT_SNIPPET = 110
_MOST_DOTS = 2000


def page(study: Study, content: dict[str, Any], headline: str) -> str:
    """The document.

    Args:
        study: what was found.
        content: the same as JSON.
        headline: its answer in a sentence or two.
    """
    from jinja2 import Environment  # noqa: PLC0415 (an extra)

    rows, best = study.rows, study.best
    template = files("varve.probe.report").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    names = list(best.judged.figures)
    target = rows.target[rows.of(TEST)]
    wrong = _most_wrong(best.scores, target, classes=rows.is_classification)
    texts, why_none = read_texts(study.texts, rows, np.concatenate([wrong, study.setting.map_rows]))
    return environment.from_string(template).render(
        content=content,
        headline=headline,
        titles=TITLES,
        names=names,
        table=sorted(content["results"], key=_table_order),
        style=svg_plots.STYLE,
        plots={name: svg_plots.layer_plot(study.results, best.name, name) for name in names},
        order=[study.primary, *(name for name in names if name != study.primary)],
        confusion=_shown_confusion(content),
        calibration=svg_plots.calibration_plot(Calibration(**content["calibration"])) if rows.is_classification else "",
        values="" if rows.is_classification else _values(best.scores[:, 0], target),
        wrong=_shown_wrong(study, target, wrong, texts),
        why_none=why_none,
        map_json=_json_for_page(_map(study, target, texts)),
    )


def _table_order(result: dict[str, Any]) -> tuple[bool, bool, str, int]:
    """Layers of a family together, then combinations, then baselines."""
    base = result["kind"] in {"handcrafted", "baseline"} or result["name"].endswith(" alone")
    return base, result["kind"] in {"concat", "mix"}, "" if base else result["family"], result["layer"] or 0


def _json_for_page(content: dict[str, Any]) -> str:
    """JSON that can't end its own script element."""
    escaped = json.dumps(content, separators=(",", ":"))
    return escaped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _values(found: NDArray, target: NDArray) -> str:
    step = max(1, len(found) // _MOST_DOTS)
    return svg_plots.value_plot(found[::step].tolist(), target[::step].tolist())


def _shown_confusion(content: dict[str, Any]) -> dict[str, Any]:
    """The classes with most test rows, each row's shares, and what is confused most."""
    if not content["classes"]:
        return {}
    table, classes = np.array(content["confusion"]), content["classes"]
    order = np.sort(np.argsort(-table.sum(axis=1), kind="stable")[:_MAX_SHOWN_CLASSES])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    off = table * (1 - np.eye(len(classes), dtype=np.int64))
    worst = [divmod(int(at), len(classes)) for at in np.argsort(-off, axis=None, kind="stable")[:5]]
    return {
        "classes": [classes[at] for at in order],
        "rows": [[(int(table[i, j]), float(shares[i, j])) for j in order] for i in order],
        "left_out": len(classes) - len(order),
        "worst": [(classes[i], classes[j], int(table[i, j])) for i, j in worst if off[i, j]],
    }


def _most_wrong(scores: NDArray, target: NDArray, *, classes: bool) -> NDArray[np.integer]:
    """The test rows that the best model is most wrong about, the worst first."""
    if not classes:
        return np.argsort(-np.abs(scores[:, 0] - target), kind="stable")[:_MOST_WRONG]
    order = np.argsort(scores[np.arange(len(target)), target], kind="stable")[:_MOST_WRONG]
    return order[scores[order].argmax(axis=1) != target[order]]


def _shown_wrong(
    study: Study, target: NDArray, wrong: NDArray[np.integer], texts: dict[int, str]
) -> list[dict[str, str]]:
    classes, found = study.rows.classes, []
    for number in wrong.tolist():
        guess = study.best.scores[number]
        best = int(guess.argmax())
        found.append(
            {
                "text": _cut(texts.get(number, ""), _SNIPPET),
                "label": classes[target[number]] if classes else f"{target[number]:.4g}",
                "found": classes[best] if classes else f"{guess[0]:.4g}",
                "sure": f"{guess[best]:.0%}".replace("%", " %") if classes else f"{guess[0] - target[number]:+.4g}",
            }
        )
    return found


def _cut(text: str, most: int) -> str:
    text = one_line(text, None)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _map(study: Study, target: NDArray, texts: dict[int, str]) -> dict[str, Any]:
    """Where the map's rows lie, for each feature."""
    chosen = study.setting.map_rows
    mapped = [result for result in study.results if result.map is not None]
    layers, before = [], {}
    for result in mapped:
        assert result.map is not None
        places = _turned(result.map, before.get(result.family))
        before[result.family] = places
        reach = float(np.abs(places).max()) or 1.0
        layers.append(
            {
                "name": result.name,
                "family": result.family,
                "layer": result.layer,
                "places": np.round(places / reach, 3).ravel().tolist(),
                "variance": [round(share, 4) for share in result.variance],
            }
        )
    return {
        "layers": layers,
        "classes": list(study.rows.classes),
        "labels": [round(float(value), 6) for value in target[chosen]],
        "texts": [_cut(texts[row], _POINT_SNIPPET) for row in chosen.tolist() if row in texts],
        "best": study.best.name,
    }


def _turned(places: NDArray[np.float32], before: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Turned and mirrored to lie as the layer before does (orthogonal Procrustes), so that the eye can follow."""
    if before is None:
        return places
    left, _, right = np.linalg.svd(places.T @ before)
    return places @ (left @ right)
