"""Trains one model per layer, their combinations and the baselines, all on the same rows and splits.

Knows Ray only as the function that spreads the work. Invariants: the validation rows choose the best model; every model
has the same splits and seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from varve.errors import JobError, VarveError
from varve.output.feature_sets import open as open_output
from varve.output.run_output import Output
from varve.probe.data.dataset import LabelledRows, Question, load_rows, sample_rows
from varve.probe.data.feature_sets import choose_feature_sets
from varve.probe.data.split import TEST, TRAIN, VALIDATION
from varve.probe.models.bag_of_words import Texts, score_bag_of_words
from varve.probe.models.metrics import TITLES, Evaluation, evaluate
from varve.probe.models.training import ModelResult, StudySettings, train_model

if TYPE_CHECKING:
    from varve.engine.parallel import Spread

_MAP_ROWS = 1500
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Study:
    """All models with their metrics, and the rows that they were evaluated on."""

    output: Output
    question: Question
    settings: StudySettings
    results: tuple[ModelResult, ...]
    texts: Texts
    absent: dict[str, str]  # baseline → why it is missing
    notes: tuple[str, ...]

    @property
    def rows(self) -> LabelledRows:
        """The rows of the study."""
        return self.settings.rows

    @property
    def primary(self) -> str:
        """The metric that models are compared by: accuracy; macro-F1 if classes are weighted; R² for numbers."""
        if not self.rows.is_classification:
            return "r2"
        return "accuracy" if self.rows.class_weights is None else "macro_f1"

    @property
    def best(self) -> ModelResult:
        """The model with the best primary metric on the validation rows; the first of equals."""
        return max((r for r in self.results if r.validation), key=lambda r: r.validation[self.primary])


def study(
    path: str,
    question: Question,
    *,
    model: str = "auto",
    text: str | None = None,
    memory_bytes: int,
    spread: "Spread" = map,
    workers: int = 1,
    on_model: Callable[[int, int, str], None] = lambda _done, _of, _name: None,
) -> Study:
    """Train and evaluate all models.

    Args:
        path: the output of a finished run.
        question: label, features and rows.
        model: logistic, ridge or mlp; auto: logistic for classes, ridge for numbers.
        text: a kept column with the texts, "none" for no bag of words; None: the job's own texts.
        memory_bytes: limit of the vectors in memory; larger matrices are files below TMPDIR.
        spread: applies a function to each feature set, here or on a cluster.
        workers: models that are trained at once and share the memory.
        on_model: called with (models trained, models in all, name of the model just trained).

    Raises:
        JobError: the question does not fit the output.
        RunError: the output cannot be read.
    """
    output = open_output(path)
    texts = Texts.find(output, None if text == "none" else text)
    rows = load_rows(output, question)
    feature_sets, notes = choose_feature_sets(output, question.features, with_handcrafted=bool(rows.columns))
    settings = StudySettings(
        path=output.storage.uri,
        rows=rows,
        model=_resolve_model(model, rows, question),
        seed=question.seed,
        memory_bytes=memory_bytes // max(1, workers),
        map_rows=sample_rows(np.arange(rows.sizes["test"]), _MAP_ROWS, [question.seed, 3]),
    )
    trained: dict[str, ModelResult] = {}
    for result in spread(partial(train_model, settings), feature_sets):
        trained[result.name] = result
        on_model(len(trained), len(feature_sets), result.name)
    results = [trained[inputs.name] for inputs in feature_sets]
    absent: dict[str, str] = {}
    results += _baselines(settings, texts, absent, notes, with_bag_of_words=text != "none")
    notes += [*rows.notes, *_undefined_notes(results[0].test), *_label_notes(rows)]
    return Study(output, question, settings, tuple(results), texts, absent, tuple(notes))


def _undefined_notes(test: Evaluation) -> list[str]:
    """A note for each metric that is undefined because all test rows have the same label."""
    names = [TITLES[name] for name, metric in test.metrics.items() if math.isnan(metric.value)]
    return [f"{name} is undefined: every test row has the same label" for name in names]


def _label_notes(rows: LabelledRows) -> list[str]:
    """A note on validation rows that cannot choose a model, and on classes that no test row has."""
    notes = []
    if len(np.unique(rows.target[rows.in_split(VALIDATION)])) == 1:
        notes.append("every validation row has the same label: they do not show which model is best")
    present = np.unique(rows.target[rows.in_split(TEST)])
    if rows.is_classification and 1 < len(present) < len(rows.classes):
        absent = [repr(name) for code, name in enumerate(rows.classes) if code not in present]
        more = f" and {len(absent) - _SHOWN_CLASSES} more" if len(absent) > _SHOWN_CLASSES else ""
        shown = ", ".join(absent[:_SHOWN_CLASSES])
        notes.append(f"no test row has the label {shown}{more}: no figure shows how well it is predicted")
    return notes


def _resolve_model(model: str, rows: LabelledRows, question: Question) -> str:
    linear = "logistic" if rows.is_classification else "ridge"
    if model == "auto":
        return linear
    if model not in {linear, "mlp"}:
        what = f"{len(rows.classes)} classes" if rows.is_classification else "numbers"
        msg = f"--model {model}: --label {question.label} holds {what}: expected {linear} or mlp"
        raise JobError(msg + ("" if rows.is_classification else ", or --task classification"))
    return model


def _baselines(
    settings: StudySettings, texts: Texts, absent: dict[str, str], notes: list[str], *, with_bag_of_words: bool
) -> list[ModelResult]:
    rows = settings.rows
    train, count = rows.target[rows.in_split(TRAIN)], rows.sizes["test"]
    name, constant = "mean of the label", np.asarray(train.mean())[None]
    if rows.is_classification:
        name, constant = "majority class", np.bincount(train, minlength=len(rows.classes)) / len(train)
    results = [_baseline(settings, name, np.tile(constant.astype(np.float32), (count, 1)), {})]
    if not with_bag_of_words:
        absent["bag of words"] = "--text none"
        return results
    try:
        scores, chosen, text_notes = score_bag_of_words(texts, rows, settings.seed, settings.memory_bytes)
    except VarveError as e:
        where = "the run kept no text, and " if texts.from_source else ""
        absent["bag of words"] = f"{where}{e}"
        return results
    notes += text_notes
    return [*results, _baseline(settings, "bag of words", scores, chosen)]


def _baseline(settings: StudySettings, name: str, scores: NDArray[np.float32], chosen: dict[str, float]) -> ModelResult:
    rows = settings.rows
    test = evaluate(scores, rows.target[rows.in_split(TEST)], rows.groups[rows.in_split(TEST)], settings.seed)
    return ModelResult(name, "baseline", "", None, scores.shape[1], test, {}, chosen, scores)
