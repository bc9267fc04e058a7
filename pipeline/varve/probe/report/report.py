"""Writes the results of a study to a folder: probe.json, the model, the plot of the layers and the HTML page.

Knows nothing of training, nor of how the page looks.
"""

import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from varve.errors import JobError, RunError
from varve.probe.data.split import TEST
from varve.probe.models.metrics import TITLES, Metric, difference, measure_calibration
from varve.probe.models.study import ModelResult, Study
from varve.probe.report.html_page import render_page
from varve.probe.report.layer_plot import layer_plot
from varve.probe.saved_probe import Probe, describe_run

JSON_NAME, PAGE_NAME, PLOT_NAME, MODEL_NAME = "probe.json", "report.html", "layers.svg", "model"
# Bootstrap intervals of fewer independent groups are too narrow.
_MIN_TEST_GROUPS = 30


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write probe.json, the model, layers.svg and report.html; returns the content of probe.json.

    Raises:
        RunError: a file cannot be written.
    """
    content = to_json(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        best_probe(study).save(folder / MODEL_NAME)
        plot = layer_plot(study.results, study.best.name, study.primary).standalone()
        (folder / PLOT_NAME).write_text(plot, "utf-8")
        (folder / PAGE_NAME).write_text(render_page(study, content, headline(content)), "utf-8")
    except OSError as e:
        msg = f"{folder}: the report cannot be written: {e.strerror or e}. Free disk space, or choose another --output"
        raise RunError(msg) from e
    return content


def claim(folder: Path) -> None:
    """Check that a folder may be overwritten: it is absent, empty or holds an earlier probe.

    Raises:
        JobError: the folder holds something else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / JSON_NAME).exists())):
        msg = f"--output: {folder} exists and holds no probe. Choose another folder"
        raise JobError(msg)


def best_probe(study: Study) -> Probe:
    """The best model of a study, as it is saved."""
    best, rows = study.best, study.rows
    assert best.inputs is not None
    assert best.head is not None
    record = {
        "name": best.name,
        "model": study.settings.model,
        "seed": study.settings.seed,
        "chosen": best.chosen,
        "rows": rows.sizes,
        "test": {name: _metric(metric) for name, metric in best.test.metrics.items()},
        "layer_weights": best.head.layer_weights,
    }
    return Probe(
        head=best.head,
        features=best.inputs.columns,
        handcrafted=rows.columns if best.inputs.with_handcrafted else (),
        classes=rows.classes,
        label=study.question.label,
        run=describe_run(study.output, best.inputs.columns),
        record=record,
    )


def to_json(study: Study) -> dict[str, Any]:
    """The content of probe.json: all results of a study except predictions of single rows."""
    rows, best = study.rows, study.best
    content: dict[str, Any] = {
        "path": study.output.storage.uri,
        "label": study.question.label,
        "task": "classification" if rows.is_classification else "regression",
        "classes": list(rows.classes),
        "model": study.settings.model,
        "seed": study.settings.seed,
        "rows": {**rows.sizes, "left_out": rows.left_out},
        "num_test_labels": len(np.unique(rows.target[rows.in_split(TEST)])),
        "num_test_groups": len(np.unique(rows.groups[rows.in_split(TEST)])),  # rows, if there are no groups
        "groups": study.question.groups,
        "num_groups": int(rows.groups.max()) + 1 if study.question.groups is not None else None,
        "primary": study.primary,
        "best": best.name,
        # How much better the best model is than each other, on the same bootstrap draws.
        "against": {
            other.name: _metric(difference(best.test, other.test, study.primary))
            for other in study.results
            if other.name != best.name
        },
        "results": [_result(result) for result in study.results],
        "absent": study.absent,
        "notes": list(study.notes),
        "run": describe_run(study.output),
        "varve": version("varve"),
    }
    if rows.is_classification:
        target = rows.target[rows.in_split(TEST)]
        predicted = best.scores.argmax(axis=1)
        content["calibration"] = asdict(measure_calibration(best.scores, target))
        content["confusion"] = confusion_matrix(target, predicted, labels=range(len(rows.classes))).tolist()
    return content


def _metric(metric: Metric) -> dict[str, float | None]:
    return {key: _finite(getattr(metric, key)) for key in ("value", "low", "high")}


def _finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _result(result: ModelResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "kind": result.kind,
        "family": result.family,
        "layer": result.layer,
        "inputs": result.width,
        "test": {name: _metric(metric) for name, metric in result.test.metrics.items()},
        "validation": {name: _finite(value) for name, value in result.validation.items()},
        "chosen": result.chosen,
        "layer_weights": result.head.layer_weights if result.head else [],
    }


def number(value: float | None) -> str:
    """A metric with three decimals; a dash if it is undefined."""
    return "-" if value is None else f"{value:.3f}"


def headline(content: dict[str, Any]) -> str:
    """The result in one to three sentences, or why the test rows do not show one."""
    if content["num_test_labels"] == 1:
        return (
            f"All {content['rows']['test']:,} test rows have the same label, so the figures do not measure how well a "
            "model separates labels. Use more rows, or another --split."
        )
    results = {result["name"]: result for result in content["results"]}
    best, primary = results[content["best"]], content["primary"]
    metric = best["test"][primary]
    baseline = next(result for result in content["results"] if result["kind"] == "baseline")
    interval = f"95 % interval {number(metric['low'])} to {number(metric['high'])}"
    text = (
        f"Best on the validation rows: {best['name']}. Its {TITLES[primary].lower()} on {content['rows']['test']:,} "
        f"test rows is {number(metric['value'])} ({interval}); {baseline['name']}: "
        f"{number(baseline['test'][primary]['value'])}."
    )
    if content["num_test_groups"] < _MIN_TEST_GROUPS:
        what = "groups of rows" if content["groups"] else "rows"
        text += f" {content['num_test_groups']} test {what} are too few for a reliable figure or interval."
    if best["kind"] == "handcrafted":
        text = f"No feature of the run is better than the hand-crafted columns alone. {text}"
    if "bag of words" not in results:
        return text
    apart, words = content["against"]["bag of words"], results["bag of words"]["test"][primary]["value"]
    text += f" A bag of words reaches {number(words)}"
    if apart["low"] is None or apart["low"] <= 0 <= apart["high"]:
        return f"{text}; these test rows do not show which of the two is better."
    return f"{text}, {number(abs(apart['value']))} {'less' if apart['value'] > 0 else 'more'}."
