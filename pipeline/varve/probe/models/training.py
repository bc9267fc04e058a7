"""One model of a study, trained and judged.

Invariants: regularisation and epochs are chosen by the validation rows; the test rows are looked at once, to report.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.probe.data.dataset import Rows
from varve.probe.data.feature_matrix import Matrix, lay_out
from varve.probe.data.feature_sets import Inputs
from varve.probe.data.run_output import Output
from varve.probe.data.split import TEST, TRAIN, VALIDATION
from varve.probe.models.head import Head, Shape
from varve.probe.models.linear import Data, Fitted, fit_logistic, fit_ridge
from varve.probe.models.metrics import ClassFigures, Judged, ValueFigures, judge
from varve.probe.models.network import HIDDEN, fit_network


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
