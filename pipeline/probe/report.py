"""What a study found: as one JSON document, and as one page that needs no network.

Knows nothing of training. Texts of rows reach the page as escaped words and as JSON, never as markup.
"""

import json
import math
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import JobError, RunError
from pipeline.probe import drawing
from pipeline.probe.metrics import TITLES, Calibration, Figure, calibrate, confusion, difference
from pipeline.probe.saved import Probe, run_of
from pipeline.probe.split import TEST
from pipeline.probe.study import Result, Study
from pipeline.probe.words import read_texts

JSON_NAME, PAGE_NAME, PLOT_NAME, MODEL_NAME = "probe.json", "report.html", "layers.svg", "model"
_MOST_WRONG = 20
_MAX_SHOWN_CLASSES = 30
_SNIPPET = 400
_POINT_SNIPPET = 110
_MOST_DOTS = 2000


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write probe.json, the model, layers.svg and report.html; returns the content of probe.json.

    Raises:
        RunError: they can't be written, all or some.
    """
    content = to_json(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(json.dumps(content, indent=1) + "\n")
        probe_of(study).save(folder / MODEL_NAME)
        plot = drawing.layer_plot(study.results, study.best.name, study.primary, alone=True)
        (folder / PLOT_NAME).write_text(plot)
        (folder / PAGE_NAME).write_text(page(study, content))
    except OSError as e:
        msg = f"{folder}: what was found can't be written: {e.strerror or e}. Make room, or choose another --output"
        raise RunError(msg) from e
    return content


def claim(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier probe, before anything is trained.

    Raises:
        JobError: it does.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / JSON_NAME).exists())):
        msg = f"--output: {folder} exists and is not a probe's. Choose another folder"
        raise JobError(msg)


def probe_of(study: Study) -> Probe:
    """The best model, as it is saved."""
    best, rows = study.best, study.rows
    assert best.inputs is not None
    figures = {name: _figure(figure) for name, figure in best.judged.figures.items()}
    record = {
        "name": best.name,
        "model": study.setting.model,
        "seed": study.setting.seed,
        "chosen": best.chosen,
        "rows": rows.sizes,
        "test": figures,
        "layer_weights": list(best.layer_weights),
    }
    columns = rows.columns if best.inputs.with_handcrafted else ()
    return Probe(
        best.head, best.inputs.columns, columns, rows.classes, study.question.label, run_of(study.output), record
    )


def to_json(study: Study) -> dict[str, Any]:
    """Everything that a study found, but for predictions of single rows."""
    rows, best = study.rows, study.best
    content: dict[str, Any] = {
        "path": study.output.storage.uri,
        "label": study.question.label,
        "task": "classification" if rows.is_classification else "regression",
        "classes": list(rows.classes),
        "model": study.setting.model,
        "seed": study.setting.seed,
        "rows": {**rows.sizes, "left_out": rows.left_out},
        "groups": study.question.groups,
        "num_groups": int(rows.groups.max()) + 1 if rows.grouped else None,
        "primary": study.primary,
        "best": best.name,
        "against": _against(study),
        "results": [_result(result) for result in study.results],
        "absent": study.absent,
        "notes": list(study.notes),
        "run": run_of(study.output),
        "varve": version("varve"),
    }
    if rows.is_classification:
        target = rows.target[rows.of(TEST)]
        content["calibration"] = asdict(calibrate(best.scores, target))
        content["confusion"] = confusion(best.scores, target).tolist()
    return content


def _against(study: Study) -> dict[str, dict[str, float | None]]:
    """How much better the best model is than each other, on the same draws."""
    others = [result for result in study.results if result.name != study.best.name]
    return {o.name: _figure(difference(study.best.judged, o.judged, study.primary)) for o in others}


def _figure(figure: Figure) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {key: _number(getattr(figure, key)) for key in ("value", "low", "high")}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _result(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "kind": result.kind,
        "family": result.family,
        "layer": result.layer,
        "inputs": result.width,
        "test": {name: _figure(figure) for name, figure in result.judged.figures.items()},
        "validation": {name: _number(value) for name, value in result.validation.items()},
        "chosen": result.chosen,
        "layer_weights": list(result.layer_weights),
    }


def number(value: float | None) -> str:
    """A figure in words: a dash where it is undefined."""
    return "-" if value is None else f"{value:.3f}"


def headline(content: dict[str, Any]) -> str:
    """The answer in a sentence or two."""
    results = {result["name"]: result for result in content["results"]}
    best, primary = results[content["best"]], content["primary"]
    figure = best["test"][primary]
    base = next(result for result in content["results"] if result["kind"] == "baseline")
    interval = f"95 % interval {number(figure['low'])} to {number(figure['high'])}"
    lead = f"Of the run's features {best['name']}"
    if best["kind"] == "handcrafted":
        lead = "No feature of the run did better on the validation rows than the hand-crafted columns alone"
    told = (
        f"{lead}: {TITLES[primary].lower()} {number(figure['value'])} ({interval}) on "
        f"{content['rows']['test']:,} test rows; {base['name']} {number(base['test'][primary]['value'])}."
    )
    if "bag of words" not in results:
        return told
    apart, words = content["against"]["bag of words"], results["bag of words"]["test"][primary]["value"]
    told += f" A bag of words reaches {number(words)}"
    if apart["low"] is None or apart["low"] <= 0 <= apart["high"]:
        return f"{told}, which these test rows can't tell from it."
    return f"{told}, {number(abs(apart['value']))} {'less' if apart['value'] > 0 else 'more'}."


def page(study: Study, content: dict[str, Any]) -> str:
    """The report as one HTML document."""
    from jinja2 import Environment  # noqa: PLC0415 (an extra)

    rows, best = study.rows, study.best
    template = files("pipeline.probe").joinpath("report.html.jinja").read_text()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    names = list(best.judged.figures)
    target = rows.target[rows.of(TEST)]
    wrong = _most_wrong(best.scores, target, classes=rows.is_classification)
    texts, why_none = read_texts(study.texts, rows, np.concatenate([wrong, study.setting.map_rows]))
    return environment.from_string(template).render(
        content=content,
        headline=headline(content),
        titles=TITLES,
        names=names,
        table=sorted(content["results"], key=_table_order),
        style=drawing.STYLE,
        plots={name: drawing.layer_plot(study.results, best.name, name) for name in names},
        order=[study.primary, *(name for name in names if name != study.primary)],
        confusion=_shown_confusion(content),
        calibration=drawing.calibration_plot(Calibration(**content["calibration"])) if rows.is_classification else "",
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
    return drawing.value_plot(found[::step].tolist(), target[::step].tolist())


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
    text = " ".join(text.split())
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
