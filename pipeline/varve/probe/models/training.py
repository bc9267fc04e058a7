"""Trains and evaluates one model of a study.

Invariants: the validation rows choose regularisation and epochs; the test rows are used once, for the report.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.output import feature_sets
from varve.probe.data.dataset import LabelledRows
from varve.probe.data.feature_matrix import Matrix, build_matrices
from varve.probe.data.feature_sets import FeatureSet
from varve.probe.data.split import TEST, TRAIN, VALIDATION
from varve.probe.models.head import Head, Shape
from varve.probe.models.linear import FittedHead, TrainingData, fit_logistic, fit_ridge
from varve.probe.models.metrics import ClassificationMetrics, Evaluation, RegressionMetrics, evaluate
from varve.probe.models.network import HIDDEN, fit_network


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What all models of a study share; small enough to be sent to any worker."""

    path: str
    rows: LabelledRows
    model: str  # logistic | ridge | mlp
    seed: int
    memory_bytes: int
    map_rows: NDArray[np.int64]  # numbers of the test rows that the map shows


@dataclass(frozen=True)
class ModelResult:
    """A trained model or a baseline, with its metrics."""

    name: str
    kind: str  # single | concat | mix | handcrafted | baseline
    family: str
    layer: int | None
    width: int
    test: Evaluation
    validation: dict[str, float]  # metrics on the validation rows; empty for baselines
    chosen: dict[str, float]
    scores: NDArray[np.float32]  # of the test rows
    inputs: FeatureSet | None = None
    head: Head | None = None
    map: NDArray[np.float32] | None = None  # (map rows, 2)
    variance: tuple[float, float] = (0.0, 0.0)  # share of the vectors' variance on each axis of the map


def train_model(settings: StudySettings, inputs: FeatureSet) -> ModelResult:
    """Train and evaluate one model."""
    rows = settings.rows
    output = feature_sets.open(settings.path)
    shape = _shape(settings, inputs)
    with build_matrices(
        output, rows, inputs.columns, settings.memory_bytes, with_handcrafted=inputs.with_handcrafted
    ) as matrices:
        fitted = _fit(rows, shape, matrices, settings.seed)
        scores = fitted.head.scores_of(matrices[TEST])
        validation_scores = fitted.head.scores_of(matrices[VALIDATION])
        positions, variance = _map_positions(settings, inputs, matrices[TEST], fitted.head)
    test, validation = rows.in_split(TEST), rows.in_split(VALIDATION)
    measure: Any = ClassificationMetrics if rows.is_classification else RegressionMetrics
    return ModelResult(
        name=inputs.name,
        kind=inputs.kind,
        family=inputs.family,
        layer=inputs.layer,
        width=shape.vector_width + shape.handcrafted_width,
        test=evaluate(scores, rows.target[test], rows.groups[test], settings.seed),
        validation=measure(validation_scores, rows.target[validation])(),
        chosen=fitted.chosen,
        scores=scores,
        inputs=inputs,
        head=fitted.head,
        map=positions,
        variance=variance,
    )


def _shape(settings: StudySettings, inputs: FeatureSet) -> Shape:
    rows = settings.rows
    return Shape(
        vector_width=sum(column.width for column in inputs.columns),
        mixed_layers=len(inputs.columns) if inputs.kind == "mix" else 0,
        handcrafted_width=rows.handcrafted.shape[1] if inputs.with_handcrafted else 0,
        hidden=HIDDEN if settings.model == "mlp" else (),
        outputs=len(rows.classes) or 1,
    )


def _fit(rows: LabelledRows, shape: Shape, matrices: dict[int, Matrix], seed: int) -> FittedHead:
    data = TrainingData(
        train=matrices[TRAIN],
        validation=matrices[VALIDATION],
        target=rows.target[rows.in_split(TRAIN)],
        validation_target=rows.target[rows.in_split(VALIDATION)],
        class_weights=rows.class_weights,
    )
    if shape.hidden or shape.mixed_layers:
        return fit_network(data, shape, seed)
    return fit_logistic(data, shape) if rows.is_classification else fit_ridge(data, shape)


def _map_positions(
    settings: StudySettings, inputs: FeatureSet, test: Matrix, head: Head
) -> tuple[NDArray[np.float32] | None, tuple[float, float]]:
    """((map rows, 2) positions on the first two principal axes of the standardised vectors, their shares of variance).

    None without a single feature.
    """
    if inputs.kind != "single" or inputs.name.endswith(" alone"):
        return None, (0.0, 0.0)
    rows = np.concatenate([test.rows(number, number + 1) for number in settings.map_rows.tolist()])
    vectors = (rows[:, : head.shape.vector_width] - head.mean.numpy()) / head.scale.numpy()
    vectors = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(vectors, full_matrices=False)
    variance = np.square(singular) / max(float(np.square(singular).sum()), 1e-12)
    positions = (left * singular)[:, :2]
    if positions.shape[1] < 2:
        positions, variance = np.pad(positions, ((0, 0), (0, 1))), np.append(variance, 0.0)
    return positions.astype(np.float32), (float(variance[0]), float(variance[1]))
