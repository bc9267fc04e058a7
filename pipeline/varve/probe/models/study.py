"""One model for each layer, their combinations and the baselines, on the same rows and splits.

Knows Ray only through the function that spreads the work. Invariants: the best model is chosen by the validation rows;
every model sees the same splits and seeds.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from varve.errors import JobError, VarveError
from varve.probe.data.dataset import Question, Rows, gather
from varve.probe.data.feature_sets import choose_inputs
from varve.probe.data.run_output import Output
from varve.probe.data.split import TEST, TRAIN
from varve.probe.models.bag_of_words import Texts, score_words
from varve.probe.models.metrics import TITLES, Judged, judge
from varve.probe.models.training import Result, Setting, fit

if TYPE_CHECKING:
    from varve.verification.verify import Spread

MAP_ROWS = 1500
MODELS = ("logistic", "ridge", "mlp")


@dataclass(frozen=True)
class Study:
    """All models, and the rows they were judged on."""

    output: Output
    question: Question
    setting: Setting
    results: tuple[Result, ...]
    texts: Texts
    absent: dict[str, str]  # model → why it is not there
    notes: tuple[str, ...]

    @property
    def rows(self) -> Rows:
        """The rows of the study."""
        return self.setting.rows

    @property
    def primary(self) -> str:
        """The figure by which models are compared."""
        return primary(self.rows)

    @property
    def best(self) -> Result:
        """The model that the validation rows like best; the first of equals."""
        return max((r for r in self.results if r.validation), key=lambda r: r.validation[self.primary])


def primary(rows: Rows) -> str:
    """Accuracy; macro-F1 where classes are weighted; R² of numbers."""
    return "r2" if not rows.is_classification else "accuracy" if rows.class_weights is None else "macro_f1"


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
    """Train and judge every model.

    Args:
        path: the output of a finished run.
        question: what is asked of it.
        model: logistic, ridge or mlp; auto: logistic for classes, ridge for numbers.
        text: a kept column with the texts, "none" for no bag of words; None: the job's own texts.
        memory_bytes: what the vectors may take; beyond it they lie in files below TMPDIR.
        spread: how the models are trained: here one by one, or on a cluster.
        workers: how many are trained at once, which share the memory.
        on_model: called with (models trained, models in all, name of the one that is done).

    Raises:
        JobError: the question does not fit the output.
        RunError: the output can't be read.
    """
    output = Output.open(path)
    texts = Texts.find(output, None if text == "none" else text)
    rows = gather(output, question)
    listed, notes = choose_inputs(output, question.features, beside=bool(rows.columns))
    setting = Setting(
        path=output.storage.uri,
        rows=rows,
        model=_settle_model(model, rows, question),
        seed=question.seed,
        memory_bytes=memory_bytes // max(1, workers),
        map_rows=_map_rows(rows, question.seed),
    )
    found: dict[str, Result] = {}
    for result in spread(partial(fit, setting), listed):
        found[result.name] = result
        on_model(len(found), len(listed), result.name)
    results = [found[inputs.name] for inputs in listed]
    absent: dict[str, str] = {}
    results += _baselines(setting, texts, text != "none", absent, notes)
    told = (*notes, *rows.notes, *_undefined(results[0].judged))
    return Study(output, question, setting, tuple(results), texts, absent, told)


def _undefined(judged: Judged) -> list[str]:
    """A note for each figure that needs labels which differ, where those of the test rows do not."""
    names = [TITLES[name] for name, figure in judged.figures.items() if math.isnan(figure.value)]
    return [f"{name} is undefined: every test row has the same label" for name in names]


def _settle_model(model: str, rows: Rows, question: Question) -> str:
    fitting = "logistic" if rows.is_classification else "ridge"
    if model == "auto":
        return fitting
    if model not in {fitting, "mlp"}:
        what = f"{len(rows.classes)} classes" if rows.is_classification else "numbers"
        msg = f"--model {model}: --label {question.label} holds {what}: expected {fitting} or mlp"
        raise JobError(msg + ("" if rows.is_classification else ", or --task classification"))
    return model


def _map_rows(rows: Rows, seed: int) -> NDArray[np.int64]:
    count = rows.sizes["test"]
    if count <= MAP_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 3]).choice(count, MAP_ROWS, replace=False))


def _baselines(
    setting: Setting, texts: Texts, with_words: bool, absent: dict[str, str], notes: list[str]
) -> list[Result]:
    rows = setting.rows
    train, count = rows.target[rows.of(TRAIN)], rows.sizes["test"]
    name, shares = "mean of the label", np.asarray(train.mean())[None]
    if rows.is_classification:
        name, shares = "majority class", np.bincount(train, minlength=len(rows.classes)) / len(train)
    found = [_baseline(setting, name, np.tile(shares.astype(np.float32), (count, 1)), {}, 0.0)]
    if not with_words:
        absent["bag of words"] = "--text none"
        return found
    begun = time.monotonic()
    try:
        scores, chosen, told = score_words(texts, rows, setting.seed, setting.memory_bytes)
    except VarveError as e:
        where = "the run kept no text, and " if texts.from_source else ""
        absent["bag of words"] = f"{where}{e}"
        return found
    notes += told
    return [*found, _baseline(setting, "bag of words", scores, chosen, time.monotonic() - begun)]


def _baseline(
    setting: Setting, name: str, scores: NDArray[np.float32], chosen: dict[str, float], seconds: float
) -> Result:
    rows = setting.rows
    judged = judge(scores, rows.target[rows.of(TEST)], rows.groups[rows.of(TEST)], setting.seed)
    return Result(name, "baseline", "", None, scores.shape[1], judged, {}, chosen, seconds, scores)
