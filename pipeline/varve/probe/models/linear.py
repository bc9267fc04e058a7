"""Linear models: logistic regression and ridge regression, with the regularisation chosen on the validation rows.

Knows nothing of features or files. In memory, logistic regression is scikit-learn's. For files, scikit-learn chooses C
and a starting point on a sample of the training rows, from where SciPy's L-BFGS minimises the same objective over all
rows, with gradients summed over chunks; both end at the same optimum. Ridge is solved from the normal equations, which
take one pass over the rows.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from varve.probe.data.feature_matrix import Matrix, moments
from varve.probe.models.head import Head, Shape

# scikit-learn's C is the inverse of the strength of the penalty. From strong to weak; each fit starts from the last.
CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_ALPHAS = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-5  # of the gradient; with scikit-learn's 1e-4 and weak penalties probabilities are off by 0.04
_SAMPLE_ROWS = 50_000
_BATCH_ROWS = 2048
_PATIENCE = 2  # values of C without improvement before the search ends


@dataclass(frozen=True)
class TrainingData:
    """Inputs and labels that a model is trained and chosen on."""

    train: Matrix
    validation: Matrix
    target: NDArray  # (train rows,) codes of classes, or numbers
    validation_target: NDArray  # (validation rows,)
    class_weights: NDArray[np.float32] | None  # (classes,)


@dataclass(frozen=True)
class FittedHead:
    """A trained head with its hyperparameters."""

    head: Head
    chosen: dict[str, float]  # the regularisation that the validation rows chose; epochs
    validation_loss: float


def log_loss(scores: NDArray[np.float32], target: NDArray, weights: NDArray[np.float32] | None) -> float:
    """Mean of -log of the probability of each row's class, rows weighted by their class."""
    losses = -np.log(np.maximum(scores[np.arange(len(target)), target], 1e-12))
    return float(np.average(losses, weights=None if weights is None else weights[target]))


def fit_logistic(data: TrainingData, shape: Shape, sample_rows: int = _SAMPLE_ROWS) -> FittedHead:
    """Logistic regression; C by the log loss of the validation rows.

    Args:
        data: in memory or in files.
        shape: of the head.
        sample_rows: training rows on which C is chosen if the data are in files.
    """
    if data.train.values is None:
        return _refine(data, fit_logistic(_sample(data, sample_rows), shape))
    mean, scale = moments(data.train, shape.vector_width)
    inputs = data.train.values.copy()
    inputs[:, : shape.vector_width] -= mean
    inputs[:, : shape.vector_width] /= scale
    row_weights = None if data.class_weights is None else data.class_weights[data.target]
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True)
    fits: list[FittedHead] = []
    for c in CS:
        model.set_params(C=c).fit(inputs, data.target, sample_weight=row_weights)
        head = _linear_head(shape, mean, scale, np.asarray(model.coef_), np.asarray(model.intercept_))
        loss = log_loss(head.scores_of(data.validation), data.validation_target, data.class_weights)
        fits.append(FittedHead(head, {"C": c}, loss))
        if len(fits) - np.argmin([fit.validation_loss for fit in fits]) > _PATIENCE:
            break
    return min(fits, key=lambda fit: fit.validation_loss)


def _linear_head(shape: Shape, mean: NDArray, scale: NDArray, weights: NDArray, bias: NDArray) -> Head:
    """A head with weights (outputs, inputs) and bias (outputs,) on standardised inputs.

    Of two classes only the weights of the second are given: the logit of the first is 0.
    """
    if shape.outputs == 2:
        weights, bias = np.vstack([0 * weights, weights]), np.concatenate([[0.0], bias])
    return Head.from_state(shape, {"mean": mean, "scale": scale, "body.0.weight": weights, "body.0.bias": bias})


def _sample(data: TrainingData, num_rows: int) -> TrainingData:
    """The same with some of the training rows, in memory: the first of a shuffled epoch."""
    batches, count = [], 0
    for numbers, rows in data.train.batches((0, 0), min(num_rows, _BATCH_ROWS)):
        batches.append((numbers, rows))
        count += len(rows)
        if count >= num_rows:
            break
    numbers = np.concatenate([numbers for numbers, _ in batches])
    # A rare class may have no row among them: add one of each such class.
    classes, first = np.unique(data.target, return_index=True)
    missing = first[~np.isin(classes, data.target[numbers])]
    numbers = np.concatenate([numbers, missing])
    missing_rows = [data.train.rows(row, row + 1) for row in missing.tolist()]
    rows = np.concatenate([*(rows for _, rows in batches), *missing_rows])
    return replace(data, train=Matrix(len(rows), data.train.width, rows), target=data.target[numbers])


def _refine(data: TrainingData, start: FittedHead) -> FittedHead:
    """The optimum over all rows, from that of a sample; C is kept, since it does not grow with the rows.

    The objective is that of scikit-learn's LogisticRegression, divided by C times the sum of the rows' weights.
    """
    shape, c = start.head.shape, start.chosen["C"]
    outputs = 1 if shape.outputs == 2 else shape.outputs
    mean, scale = moments(data.train, shape.vector_width)
    width = data.train.width
    divisor = np.concatenate([scale, np.ones(width - len(scale))])
    shift = np.concatenate([mean, np.zeros(width - len(mean))])
    row_weights = np.ones(len(data.target)) if data.class_weights is None else data.class_weights[data.target]
    total = float(row_weights.sum())

    def objective(flat: NDArray) -> tuple[float, NDArray]:
        """(value, gradient) at weights and bias of each output, on inputs that are standardised implicitly."""
        table = flat.reshape(outputs, width + 1)
        weights = (table[:, :width] / divisor).astype(np.float32)
        offset = table[:, width] - weights @ shift
        value, gradient, residuals = 0.0, np.zeros((outputs, width)), np.zeros(outputs)
        for first, chunk in data.train.chunks():
            rows = slice(first, first + len(chunk))
            losses, residual = _losses(chunk @ weights.T + offset, data.target[rows], row_weights[rows])
            value += losses
            gradient += residual.astype(np.float32).T @ chunk
            residuals += residual.sum(axis=0)
        gradient = (gradient - residuals[:, None] * shift) / divisor
        value = value / total + (table[:, :width] ** 2).sum() / (2 * c * total)
        gradient = gradient / total + table[:, :width] / (c * total)
        return value, np.hstack([gradient, residuals[:, None] / total]).ravel()

    state = start.head.state()
    initial = np.hstack([state["body.0.weight"], state["body.0.bias"][:, None]])[-outputs:].astype(np.float64)
    options: Any = {"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE}
    found = minimize(objective, initial.ravel(), jac=True, method="L-BFGS-B", options=options)
    table = found.x.reshape(outputs, width + 1)
    head = _linear_head(shape, mean, scale, table[:, :width], table[:, width])
    scores = head.scores_of(data.validation)
    return FittedHead(head, start.chosen, log_loss(scores, data.validation_target, data.class_weights))


def _losses(logits: NDArray, target: NDArray, weights: NDArray) -> tuple[float, NDArray]:
    """(sum of weighted losses, their gradient by the logits); one column of logits is the second of two classes."""
    outputs = logits.shape[1]
    if outputs == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    logs = log_softmax(logits, axis=1)
    rows = np.arange(len(target))
    residual = np.exp(logs)
    residual[rows, target] -= 1
    return float(-(logs[rows, target] @ weights)), (residual * weights[:, None])[:, -outputs:]


def fit_ridge(data: TrainingData, shape: Shape) -> FittedHead:
    """Ridge regression; alpha by the squared error of the validation rows."""
    mean, scale = moments(data.train, shape.vector_width)
    width, num_rows = data.train.width, data.train.num_rows
    squares, products, centre = np.zeros((width, width)), np.zeros(width), np.zeros(width)
    target_mean = float(data.target.mean(dtype=np.float64))
    for first, chunk in data.train.chunks():
        inputs = chunk.astype(np.float64)
        inputs[:, : shape.vector_width] = (inputs[:, : shape.vector_width] - mean) / scale
        squares += inputs.T @ inputs
        products += inputs.T @ (data.target[first : first + len(chunk)] - target_mean)
        centre += inputs.sum(axis=0)
    centre /= num_rows
    squares -= num_rows * np.outer(centre, centre)

    def fit(alpha: float) -> FittedHead:
        weights = solve(squares + alpha * np.eye(width), products, assume_a="pos")
        head = _linear_head(shape, mean, scale, weights[None], np.array([target_mean - weights @ centre]))
        loss = float(np.mean((head.scores_of(data.validation)[:, 0] - data.validation_target) ** 2))
        return FittedHead(head, {"alpha": alpha}, loss)

    return min(map(fit, _ALPHAS), key=lambda fitted: fitted.validation_loss)
