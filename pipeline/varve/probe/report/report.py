"""What a study found, written into a folder: probe.json, the model, the plot of the layers and the page.

Knows nothing of training, nor how the page looks.
"""

import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from varve.errors import JobError, RunError
from varve.probe.data.split import TEST
from varve.probe.models.metrics import TITLES, Figure, calibrate, confusion, difference
from varve.probe.models.study import Result, Study
from varve.probe.report import svg_plots
from varve.probe.report.html_page import page
from varve.probe.saved_probe import Probe, run_of

JSON_NAME, PAGE_NAME, PLOT_NAME, MODEL_NAME = "probe.json", "report.html", "layers.svg", "model"


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write probe.json, the model, layers.svg and report.html; returns the content of probe.json.

    Raises:
        RunError: they can't be written, all or some.
    """
    content = to_json(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        probe_of(study).save(folder / MODEL_NAME)
        plot = svg_plots.layer_plot(study.results, study.best.name, study.primary, alone=True)
        (folder / PLOT_NAME).write_text(plot, "utf-8")
        (folder / PAGE_NAME).write_text(page(study, content, headline(content)), "utf-8")
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
