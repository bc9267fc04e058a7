"""One model for each layer, their combinations and the baselines, on the same rows and splits.

Knows Ray only through the function that spreads the work. Invariants: regularisation, epochs and the best model are
chosen by the validation rows; the test rows are looked at once, to report; every model sees the same splits and seeds.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import JobError, VarveError
from pipeline.probe.head import Head, Shape
from pipeline.probe.inputs import Inputs, choose_inputs
from pipeline.probe.linear import Data, Fitted, fit_logistic, fit_ridge
from pipeline.probe.matrix import Matrix, lay_out
from pipeline.probe.metrics import TITLES, ClassFigures, Judged, ValueFigures, judge
from pipeline.probe.network import HIDDEN, fit_network
from pipeline.probe.rows import Question, Rows, gather
from pipeline.probe.split import TEST, TRAIN, VALIDATION
from pipeline.probe.table import Output
from pipeline.probe.words import Texts, score_words

if TYPE_CHECKING:
    from pipeline.verify import Spread

MAP_ROWS = 1500
MODELS = ("logistic", "ridge", "mlp")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all models of a study have in common; small enough to be sent to any worker."""

    path: str
    rows: Rows
    model: str  # logistic | ridge | mlp
    seed: int
    memory_bytes: int
    map_rows: NDArray[np.int64]  # among the test rows: those on the map


@dataclass(frozen=True)
class Result:
    """A model, judged."""

    name: str
    kind: str  # single | concat | mix | handcrafted | baseline
    family: str
    layer: int | None
    width: int
    judged: Judged
    validation: dict[str, float]  # figures of the validation rows; empty for baselines
    chosen: dict[str, float]
    seconds: float
    scores: NDArray[np.float32]  # of the test rows
    inputs: Inputs | None = None
    shape: Shape | None = None
    state: dict[str, Any] | None = None  # of the head
    map: NDArray[np.float32] | None = None  # (map rows, 2)
    variance: tuple[float, float] = (0.0, 0.0)  # share of the vectors' variance on each axis of the map
    layer_weights: tuple[float, ...] = ()  # of a mix

    @property
    def head(self) -> Head:
        """The trained head."""
        assert self.shape is not None
        assert self.state is not None
        return Head.from_state(self.shape, self.state)


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


def fit(setting: Setting, inputs: Inputs) -> Result:
    """Train and judge one model."""
    begun = time.monotonic()
    rows = setting.rows
    output = Output.open(setting.path)
    shape = _shape(setting, inputs)
    with lay_out(
        output, rows, inputs.columns, setting.memory_bytes, with_handcrafted=inputs.with_handcrafted
    ) as matrices:
        fitted = _fit(setting, shape, matrices)
        scores = fitted.head.scores_of(matrices[TEST])
        figures = _figures(rows, fitted.head.scores_of(matrices[VALIDATION]))
        places, variance = _place(setting, inputs, matrices[TEST], fitted.head)
    return Result(
        name=inputs.name,
        kind=inputs.kind,
        family=inputs.family,
        layer=inputs.layer,
        width=shape.vector_width + shape.handcrafted_width,
        judged=judge(scores, rows.target[rows.of(TEST)], rows.groups[rows.of(TEST)], setting.seed),
        validation=figures,
        chosen=fitted.chosen,
        seconds=time.monotonic() - begun,
        scores=scores,
        inputs=inputs,
        shape=shape,
        state=fitted.head.state(),
        map=places,
        variance=variance,
        layer_weights=tuple(fitted.head.layer_weights),
    )


def _shape(setting: Setting, inputs: Inputs) -> Shape:
    rows = setting.rows
    return Shape(
        vector_width=sum(column.width for column in inputs.columns),
        mixed_layers=len(inputs.columns) if inputs.kind == "mix" else 0,
        handcrafted_width=rows.handcrafted.shape[1] if inputs.with_handcrafted else 0,
        hidden=HIDDEN if setting.model == "mlp" else (),
        outputs=len(rows.classes) or 1,
    )


def _fit(setting: Setting, shape: Shape, matrices: dict[int, Matrix]) -> Fitted:
    rows = setting.rows
    sides = [rows.target[rows.of(side)] for side in (TRAIN, VALIDATION)]
    data = Data(matrices[TRAIN], matrices[VALIDATION], *sides, class_weights=rows.class_weights)
    if shape.hidden or shape.mixed_layers:
        return fit_network(data, shape, setting.seed)
    return fit_logistic(data, shape) if rows.is_classification else fit_ridge(data, shape)


def _figures(rows: Rows, scores: NDArray[np.float32]) -> dict[str, float]:
    target: Any = rows.target[rows.of(VALIDATION)]
    return ClassFigures(scores, target)() if rows.is_classification else ValueFigures(scores, target)()


def _place(
    setting: Setting, inputs: Inputs, test: Matrix, head: Head
) -> tuple[NDArray[np.float32] | None, tuple[float, float]]:
    """Where the map's rows lie on the two main axes of a feature's vectors, each dimension standardised."""
    if inputs.kind != "single" or not inputs.columns or inputs.name.endswith(" alone"):
        return None, (0.0, 0.0)
    vectors = np.concatenate([test.rows(at, at + 1) for at in setting.map_rows.tolist()])[:, : head.shape.vector_width]
    vectors = (vectors - head.mean.numpy()) / head.scale.numpy()
    vectors = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(vectors, full_matrices=False)
    share = np.square(singular) / max(float(np.square(singular).sum()), 1e-12)
    places = (left * singular)[:, :2]
    if places.shape[1] < 2:
        places, share = np.pad(places, ((0, 0), (0, 1))), np.append(share, 0.0)
    return places.astype(np.float32), (float(share[0]), float(share[1]))


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
