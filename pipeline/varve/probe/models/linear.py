"""Linear probes: logistic regression and ridge regression, their regularisation chosen on the validation rows.

Knows nothing of features or files. In memory logistic regression is scikit-learn's. Beyond it a sample of the training
rows chooses C and a start, from where SciPy's L-BFGS minimises the same objective over all rows, with gradients summed
piece by piece; so both end at the same optimum. Ridge is solved from the normal equations, which one pass gives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.optimize import minimize
from scipy.special import logsumexp

from varve.probe.data.feature_matrix import Matrix, moments
from varve.probe.models.head import Head, Shape, linear_head

# scikit-learn's C: the inverse of the strength of the penalty. From strong to weak, each warmed by the one before.
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-5  # of the gradient; scikit-learn's 1e-4 ends where weak penalties leave probabilities 0.04 off
SAMPLE_ROWS = 50_000
_BATCH_ROWS = 2048
_WORSE = 2  # steps of the path that may get worse before it ends


@dataclass(frozen=True)
class Data:
    """What a model is trained and chosen on."""

    train: Matrix
    validation: Matrix
    target: NDArray  # (train rows,) codes of classes, or numbers
    validation_target: NDArray
    class_weights: NDArray[np.float32] | None


@dataclass(frozen=True)
class Fitted:
    """A trained head, and how it came to be."""

    head: Head
    chosen: dict[str, float]  # the regularisation that the validation rows chose; epochs
    validation_loss: float


def log_loss(scores: NDArray[np.float32], target: NDArray, weights: NDArray[np.float32] | None) -> float:
    """Mean of -log of the probability of each row's class, rows weighted by their class."""
    losses = -np.log(np.maximum(scores[np.arange(len(target)), target], 1e-12))
    return float(np.average(losses, weights=None if weights is None else weights[target]))


def fit_logistic(data: Data, shape: Shape, sample_rows: int = SAMPLE_ROWS) -> Fitted:
    """Logistic regression; C by the log loss of the validation rows.

    Args:
        data: to train on, in memory or in files.
        shape: of the head.
        sample_rows: of data in files, how many rows are held at once to choose C.
    """
    if data.train.held is None:
        return _refine(data, fit_logistic(_sample(data, sample_rows), shape))
    mean, scale = moments(data.train, shape.vector_width)
    step = _in_memory(data, shape, mean, scale)
    best: Fitted | None = None
    worse = 0
    for c in CS:
        weights, bias = step(c)
        if shape.outputs == 2:  # one function tells two classes apart: the first has the logit 0
            weights, bias = np.vstack([0 * weights, weights]), np.concatenate([[0.0], bias])
        head = linear_head(shape, mean, scale, weights, bias)
        loss = log_loss(head.scores_of(data.validation), data.validation_target, data.class_weights)
        if best is None or loss < best.validation_loss:
            best, worse = Fitted(head, {"C": c}, loss), 0
        else:
            worse += 1
        if worse == _WORSE:
            break
    assert best is not None
    return best


def _sample(data: Data, rows: int) -> Data:
    """The same with some of the training rows, held in memory; of large data the first of a shuffled epoch."""
    numbers, held, count = [], [], 0
    for taken, inputs in data.train.batches((0, 0), min(rows, _BATCH_ROWS)):
        numbers.append(taken)
        held.append(inputs)
        count += len(taken)
        if count >= rows:
            break
    # Rare classes may have no row among them: one of each is added.
    classes, first = np.unique(data.target, return_index=True)
    lacking = first[~np.isin(classes, data.target[np.concatenate(numbers)])]
    held += [data.train.rows(row, row + 1) for row in lacking.tolist()]
    target = data.target[np.concatenate([*numbers, lacking])]
    return replace(data, train=Matrix(len(target), data.train.width, np.concatenate(held)), target=target)


Step = Callable[[float], tuple[NDArray, NDArray]]


def _in_memory(data: Data, shape: Shape, mean: NDArray, scale: NDArray) -> Step:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (an extra)

    assert data.train.held is not None
    inputs = data.train.held.copy()
    inputs[:, : shape.vector_width] -= mean
    inputs[:, : shape.vector_width] /= scale
    weights = None if data.class_weights is None else data.class_weights[data.target]
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True)

    def step(c: float) -> tuple[NDArray, NDArray]:
        model.set_params(C=c).fit(inputs, data.target, sample_weight=weights)
        return np.asarray(model.coef_), np.asarray(model.intercept_)

    return step


def _refine(data: Data, begun: Fitted) -> Fitted:
    """The optimum over all rows, from that of a sample; C is that of the sample: it does not grow with the rows.

    The objective is that of scikit-learn's LogisticRegression, divided by C times the rows' weights.
    """
    shape, c = begun.head.shape, begun.chosen["C"]
    two = shape.outputs == 2
    outputs = 1 if two else shape.outputs
    mean, scale = moments(data.train, shape.vector_width)
    width = data.train.width
    rescale = np.concatenate([scale, np.ones(width - len(scale))])
    shift = np.concatenate([mean, np.zeros(width - len(mean))])
    row_weights = np.ones(len(data.target)) if data.class_weights is None else data.class_weights[data.target]
    total = float(row_weights.sum())

    def loss(flat: NDArray) -> tuple[float, NDArray]:
        table = flat.reshape(outputs, width + 1)
        plain = (table[:, :width] / rescale).astype(np.float32)
        offset = table[:, width] - plain @ shift
        value, gradient, residuals = 0.0, np.zeros((outputs, width)), np.zeros(outputs)
        for start, piece in data.train.pieces():
            rows = slice(start, start + len(piece))
            losses, residual = _losses(piece @ plain.T + offset, data.target[rows], row_weights[rows])
            value += losses
            gradient += residual.astype(np.float32).T @ piece
            residuals += residual.sum(axis=0)
        gradient = (gradient - residuals[:, None] * shift) / rescale
        value = value / total + (table[:, :width] ** 2).sum() / (2 * c * total)
        gradient = gradient / total + table[:, :width] / (c * total)
        return value, np.hstack([gradient, residuals[:, None] / total]).ravel()

    state = begun.head.state()
    start = np.hstack([state["body.0.weight"], state["body.0.bias"][:, None]])[-outputs:].astype(np.float64)
    options: Any = {"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE}
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(outputs, width + 1)
    table = np.vstack([np.zeros_like(found), found]) if two else found
    head = linear_head(shape, mean, scale, table[:, :width], table[:, width])
    scored = head.scores_of(data.validation)
    return Fitted(head, begun.chosen, log_loss(scored, data.validation_target, data.class_weights))


def _losses(logits: NDArray, target: NDArray, weights: NDArray) -> tuple[float, NDArray]:
    """(sum of weighted losses, their gradient by the logits) of some rows."""
    if logits.shape[1] == 1:
        z = logits[:, 0].astype(np.float64)
        losses = np.logaddexp(0, z) - target * z
        return float(losses @ weights), ((1 / (1 + np.exp(-z)) - target) * weights)[:, None]
    logs = logits - logsumexp(logits, axis=1, keepdims=True)
    rows = np.arange(len(target))
    residual = np.exp(logs)
    residual[rows, target] -= 1
    return float(-(logs[rows, target] @ weights)), residual * weights[:, None]


def fit_ridge(data: Data, shape: Shape) -> Fitted:
    """Ridge regression; alpha by the squared error of the validation rows."""
    mean, scale = moments(data.train, shape.vector_width)
    width = data.train.width
    squares, products, centre = np.zeros((width, width)), np.zeros(width), np.zeros(width)
    middle = float(data.target.mean(dtype=np.float64))
    for start, piece in data.train.pieces():
        inputs = piece.astype(np.float64)
        inputs[:, : shape.vector_width] = (inputs[:, : shape.vector_width] - mean) / scale
        squares += inputs.T @ inputs
        products += inputs.T @ (data.target[start : start + len(piece)] - middle)
        centre += inputs.sum(axis=0)
    centre /= data.train.num_rows
    squares -= data.train.num_rows * np.outer(centre, centre)
    best: Fitted | None = None
    for alpha in ALPHAS:
        weights = solve(squares + alpha * np.eye(width), products, assume_a="pos")
        head = linear_head(shape, mean, scale, weights[None], np.array([middle - weights @ centre]))
        loss = float(np.mean((head.scores_of(data.validation)[:, 0] - data.validation_target) ** 2))
        if best is None or loss < best.validation_loss:
            best = Fitted(head, {"alpha": alpha}, loss)
    assert best is not None
    return best


def set_moments(head: Head, train: Matrix) -> None:
    """Let a head standardise vectors by the training rows."""
    mean, scale = moments(train, head.shape.vector_width)
    head.mean.copy_(torch.from_numpy(mean))
    head.scale.copy_(torch.from_numpy(scale))
