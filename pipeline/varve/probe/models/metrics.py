"""How good predictions are, and how sure that is. Pure.

Each figure comes with a 95 % interval: the test rows' groups (rows, where there are no groups) are drawn again with
replacement, and the figure is taken anew. The draws depend on the seed alone, so models are compared on the same draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

_MOST_DRAWS, _LEAST_DRAWS = 1000, 100
_WORK = 3e7  # rows x classes of all draws together
_LEAST_SCORE = 1e-12
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
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judged:
    """The figures of one model on the test rows."""

    figures: dict[str, Figure]
    draws: dict[str, NDArray[np.float32]]  # of each figure, for comparisons


class ClassFigures:
    """Accuracy, macro-F1, AUC (each class against the rest, averaged) and log loss under any weights of rows."""

    def __init__(self, scores: NDArray[np.float32], target: NDArray[np.integer]) -> None:
        """Take the scores (N, C) and classes (N,) of the test rows."""
        self._scores, self._target = scores, target
        self._classes = scores.shape[1]
        self._found = scores.argmax(axis=1)
        own = scores[np.arange(len(target)), target]
        self._losses = -np.log(np.maximum(own.astype(np.float64), _LEAST_SCORE))

    @cached_property
    def _orders(self) -> list[tuple[NDArray, NDArray]]:
        """Of each class: (rows by score, where a new score begins)."""
        found = []
        # Of two classes the areas are the same.
        for scores in self._scores.T[-1:] if self._classes == 2 else self._scores.T:
            order = np.argsort(scores, kind="stable")
            found.append((order, np.flatnonzero(np.diff(scores[order], prepend=-np.inf))))
        return found

    def __call__(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """The figures with rows weighted; each row counts once by default."""
        weights = np.ones(len(self._target)) if weights is None else weights
        pairs = np.bincount(
            self._target * self._classes + self._found, weights=weights, minlength=self._classes**2
        ).reshape(self._classes, self._classes)
        either = pairs.sum(axis=0) + pairs.sum(axis=1)
        f1 = 2 * np.diag(pairs)[either > 0] / either[either > 0]
        return {
            "accuracy": float(np.trace(pairs) / weights.sum()),
            "macro_f1": float(f1.mean()),
            "auc": self._auc(weights),
            "log_loss": float(self._losses @ weights / weights.sum()),
        }

    def _auc(self, weights: NDArray[np.float64]) -> float:
        areas = []
        for label, (order, starts) in enumerate(self._orders, self._classes - len(self._orders)):
            ordered = weights[order]
            right = ordered * (self._target[order] == label)
            hits = np.add.reduceat(right, starts)
            others = np.add.reduceat(ordered - right, starts)
            below = np.cumsum(others) - others
            if hits.sum() and others.sum():
                areas.append(hits @ (below + others / 2) / (hits.sum() * others.sum()))
        return float(np.mean(areas)) if areas else float("nan")


class ValueFigures:
    """R², mean absolute error and Spearman's correlation under any weights of rows; ranks are those of all rows."""

    def __init__(self, scores: NDArray[np.float32], target: NDArray[np.floating]) -> None:
        """Take the predictions (N, 1) and values (N,) of the test rows."""
        self._found, self._target = scores[:, 0].astype(np.float64), target.astype(np.float64)
        self._ranks = rankdata(self._found), rankdata(self._target)

    def __call__(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """The figures with rows weighted; each row counts once by default."""
        weights = np.ones(len(self._target)) if weights is None else weights
        off = self._found - self._target
        spread = weights @ np.square(self._target - np.average(self._target, weights=weights))
        return {
            "r2": float(1 - weights @ np.square(off) / spread) if spread else float("nan"),
            "mae": float(np.average(np.abs(off), weights=weights)),
            "spearman": _correlation(*self._ranks, weights),
        }


def _correlation(one: NDArray, other: NDArray, weights: NDArray) -> float:
    one, other = one - np.average(one, weights=weights), other - np.average(other, weights=weights)
    spread = np.sqrt((weights @ one**2) * (weights @ other**2))
    return float(weights @ (one * other) / spread) if spread else 0.0


def judge(scores: NDArray[np.float32], target: NDArray, groups: NDArray[np.integer], seed: int) -> Judged:
    """The figures of a model on the test rows, with their intervals.

    Args:
        scores: (N, C) probabilities, or (N, 1) values.
        target: (N,) codes of classes, or numbers.
        groups: (N,) the group of each row: rows of a group are drawn together.
        seed: of the draws.
    """
    figures: Any = ClassFigures(scores, target) if scores.shape[1] > 1 else ValueFigures(scores, target)
    taken = [figures(weights) for weights in _draws(groups, scores.size, seed)]
    draws = {name: np.array([draw[name] for draw in taken], np.float32) for name in taken[0]}
    whole = figures()
    return Judged({name: Figure(whole[name], *_ends(draws[name])) for name in whole}, draws)


def _ends(values: NDArray[np.float32]) -> tuple[float, float]:
    """Where the middle 95 % of the draws lie; NaN if a figure was defined in none (an AUC of one class)."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _draws(groups: NDArray[np.integer], work: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(N,) how often each row is drawn, again and again."""
    _, codes = np.unique(groups, return_inverse=True)
    count = int(codes.max()) + 1
    draw = np.random.default_rng([seed, 1])
    for _ in range(int(np.clip(_WORK / work, _LEAST_DRAWS, _MOST_DRAWS))):
        times = np.bincount(draw.integers(count, size=count), minlength=count)
        yield times[codes].astype(np.float64)


def difference(one: Judged, other: Judged, name: str) -> Figure:
    """How much better one model is than another on the same draws of the same test rows."""
    apart = one.draws[name] - other.draws[name]
    return Figure(one.figures[name].value - other.figures[name].value, *_ends(apart))


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often predictions of each confidence are right."""

    confidence: list[float]  # mean of each bin with rows
    right: list[float]  # share of its rows that are right
    rows: list[int]
    error: float  # expected calibration error: the mean distance, bins weighted by their rows


def calibrate(scores: NDArray[np.float32], target: NDArray[np.integer]) -> Calibration:
    """Ten bins over the probability of the predicted class (Naeini et al., 2015; Guo et al., 2017)."""
    sure = scores.max(axis=1).astype(np.float64)
    right = scores.argmax(axis=1) == target
    bins = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    rows = np.bincount(bins, minlength=_BINS)
    some = rows > 0
    confidence = np.bincount(bins, weights=sure, minlength=_BINS)[some] / rows[some]
    share = np.bincount(bins, weights=right, minlength=_BINS)[some] / rows[some]
    error = float(np.abs(confidence - share) @ rows[some] / rows.sum())
    return Calibration(confidence.tolist(), share.tolist(), rows[some].tolist(), error)


def confusion(scores: NDArray[np.float32], target: NDArray[np.integer]) -> NDArray[np.int64]:
    """(C, C): rows of each class (down) by the class they were taken for (across)."""
    classes = scores.shape[1]
    found = target.astype(np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(found, minlength=classes**2).reshape(classes, classes)
