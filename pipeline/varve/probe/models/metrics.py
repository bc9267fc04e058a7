"""Metrics of predictions with 95 % bootstrap intervals. Pure.

The groups of the test rows (or the rows, if there are no groups) are drawn with replacement, and each metric is
computed on every draw. The draws depend only on the seed, so all models are compared on the same draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

_MAX_DRAWS, _MIN_DRAWS = 1000, 100
_WORK = 3e7  # rows x classes of all draws together
_MIN_PROBABILITY = 1e-12
_BINS = 10

TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "auc": "AUC",
    "log_loss": "Log loss",
    "r2": "R²",
    "mae": "Mean absolute error",
    "spearman": "Spearman's rank correlation",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one model on the test rows."""

    metrics: dict[str, Metric]
    draws: dict[str, NDArray[np.float32]]  # values of each metric on the bootstrap draws


class ClassificationMetrics:
    """Accuracy, macro-F1, AUC (mean of one class against the rest) and log loss under any weights of the rows.

    scikit-learn's are the same, and too slow for a thousand draws of every model.
    """

    def __init__(self, scores: NDArray[np.float32], target: NDArray[np.integer]) -> None:
        """Take the probabilities (N, C) and classes (N,) of the test rows."""
        self._target = target
        self._num_classes = scores.shape[1]
        self._predicted = scores.argmax(axis=1)
        own = scores[np.arange(len(target)), target]
        self._losses = -np.log(np.maximum(own.astype(np.float64), _MIN_PROBABILITY))
        # For each class: rows by score, starts of equal scores. The AUCs of two classes are equal: one is enough.
        self._orders: list[tuple[NDArray, NDArray]] = []
        for column in scores.T[-1:] if self._num_classes == 2 else scores.T:
            order = np.argsort(column, kind="stable")
            self._orders.append((order, np.flatnonzero(np.diff(column[order], prepend=-np.inf))))

    def __call__(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """The metrics with weighted rows; each row counts once by default."""
        weights = np.ones(len(self._target)) if weights is None else weights
        cells = self._target * self._num_classes + self._predicted
        confusion = np.bincount(cells, weights=weights, minlength=self._num_classes**2)
        confusion = confusion.reshape(self._num_classes, self._num_classes)
        either = confusion.sum(axis=0) + confusion.sum(axis=1)
        f1 = 2 * np.diag(confusion)[either > 0] / either[either > 0]
        return {
            "accuracy": float(np.trace(confusion) / weights.sum()),
            "macro_f1": float(f1.mean()),
            "auc": self._auc(weights),
            "log_loss": float(self._losses @ weights / weights.sum()),
        }

    def _auc(self, weights: NDArray[np.float64]) -> float:
        areas = []
        for label, (order, starts) in enumerate(self._orders, self._num_classes - len(self._orders)):
            ordered = weights[order]
            own = ordered * (self._target[order] == label)
            positives = np.add.reduceat(own, starts)
            negatives = np.add.reduceat(ordered - own, starts)
            below = np.cumsum(negatives) - negatives
            if positives.sum() and negatives.sum():
                areas.append(positives @ (below + negatives / 2) / (positives.sum() * negatives.sum()))
        return float(np.mean(areas)) if areas else float("nan")


class RegressionMetrics:
    """R², mean absolute error and Spearman's correlation under any weights of the rows; ranks are those of all rows."""

    def __init__(self, scores: NDArray[np.float32], target: NDArray[np.floating]) -> None:
        """Take the predictions (N, 1) and values (N,) of the test rows."""
        self._predicted, self._target = scores[:, 0].astype(np.float64), target.astype(np.float64)
        self._ranks = rankdata(self._predicted), rankdata(self._target)

    def __call__(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """The metrics with weighted rows; each row counts once by default."""
        weights = np.ones(len(self._target)) if weights is None else weights
        errors = self._predicted - self._target
        spread = weights @ np.square(self._target - np.average(self._target, weights=weights))
        return {
            "r2": float(1 - weights @ np.square(errors) / spread) if spread else float("nan"),
            "mae": float(np.average(np.abs(errors), weights=weights)),
            "spearman": _correlation(*self._ranks, weights),
        }


def _correlation(one: NDArray, other: NDArray, weights: NDArray) -> float:
    one, other = one - np.average(one, weights=weights), other - np.average(other, weights=weights)
    spread = np.sqrt((weights @ one**2) * (weights @ other**2))
    return float(weights @ (one * other) / spread) if spread else 0.0


def evaluate(scores: NDArray[np.float32], target: NDArray, groups: NDArray[np.integer], seed: int) -> Evaluation:
    """The metrics of a model on the test rows, with their intervals.

    Args:
        scores: (N, C) probabilities, or (N, 1) values.
        target: (N,) codes of classes, or numbers.
        groups: (N,) the group of each row; rows of a group are drawn together.
        seed: of the draws.
    """
    measure: Any = ClassificationMetrics(scores, target) if scores.shape[1] > 1 else RegressionMetrics(scores, target)
    drawn = [measure(weights) for weights in _draw_weights(groups, scores.size, seed)]
    draws = {name: np.array([metrics[name] for metrics in drawn], np.float32) for name in drawn[0]}
    return Evaluation({name: Metric(value, *_interval(draws[name])) for name, value in measure().items()}, draws)


def _interval(values: NDArray[np.float32]) -> tuple[float, float]:
    """The range of the middle 95 % of the draws; NaN if no draw has the metric (the AUC of one class)."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _draw_weights(groups: NDArray[np.integer], work: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(N,) how often each row is in a bootstrap draw, for each draw."""
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1
    rng = np.random.default_rng([seed, 1])
    for _ in range(int(np.clip(_WORK / work, _MIN_DRAWS, _MAX_DRAWS))):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        yield times[codes].astype(np.float64)


def difference(one: Evaluation, other: Evaluation, name: str) -> Metric:
    """One model's metric minus another's, on the same draws of the same test rows."""
    value = one.metrics[name].value - other.metrics[name].value
    return Metric(value, *_interval(one.draws[name] - other.draws[name]))


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often predictions of each confidence are right."""

    confidence: list[float]  # mean of each bin with rows
    right: list[float]  # share of its rows that are right
    rows: list[int]
    error: float  # expected calibration error: mean distance of the two, bins weighted by their rows


def measure_calibration(scores: NDArray[np.float32], target: NDArray[np.integer]) -> Calibration:
    """Ten bins over the probability of the predicted class (Naeini et al., 2015; Guo et al., 2017)."""
    confidence = scores.max(axis=1).astype(np.float64)
    right = scores.argmax(axis=1) == target
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    rows = np.bincount(bins, minlength=_BINS)
    used = rows > 0
    mean = np.bincount(bins, weights=confidence, minlength=_BINS)[used] / rows[used]
    share = np.bincount(bins, weights=right, minlength=_BINS)[used] / rows[used]
    error = float(np.abs(mean - share) @ rows[used] / rows.sum())
    return Calibration(mean.tolist(), share.tolist(), rows[used].tolist(), error)
