from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from tests.probes import ROWS, WIDTH, problem
from varve.probe.data.feature_matrix import Matrix
from varve.probe.models.head import Shape
from varve.probe.models.linear import TrainingData, fit_logistic, fit_ridge


def matrices(inputs, target, folder=None):
    """((train, validation), (their targets)); in files if there is a folder."""
    ends = [0, len(inputs) * 7 // 10, len(inputs)]
    made = []
    for name, (start, stop) in enumerate(pairwise(ends)):
        part = np.ascontiguousarray(inputs[start:stop])
        path = None
        if folder:
            path = folder / str(name)
            part.tofile(path)
        made.append(Matrix(stop - start, inputs.shape[1], None if path else part, path))
    return made, (target[: ends[1]], target[ends[1] :])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_from_files_has_the_optimum_of_scikit_learn(classes, weighted, tmp_path):
    inputs, target = problem(classes=classes)
    inputs = inputs * 5 + 3
    inputs[:, 0] *= 1e-33  # real checkpoints have such dimensions; standardised they count as any other
    weights = np.linspace(0.5, 2, classes).astype(np.float32) if weighted else None
    shape = Shape(vector_width=WIDTH, mixed_layers=0, handcrafted_width=0, hidden=(), outputs=classes)
    (train, validation), targets = matrices(inputs, target, tmp_path)
    data = TrainingData(train, validation, *targets, class_weights=weights)
    fitted = fit_logistic(data, shape, sample_rows=150)
    values = train.rows(0, train.num_rows)
    scaler = StandardScaler().fit(values)
    row_weights = None if weights is None else weights[targets[0]]

    def expected(c: float) -> np.ndarray:
        model = LogisticRegression(C=c, max_iter=2000, tol=1e-8)
        model.fit(scaler.transform(values), targets[0], sample_weight=row_weights)
        return model.predict_proba(scaler.transform(validation.rows(0, validation.num_rows)))

    in_memory = fit_logistic(replace(data, train=Matrix(train.num_rows, WIDTH, values)), shape)
    for found in (fitted, in_memory):
        assert np.abs(found.head.scores_of(validation) - expected(found.chosen["C"])).max() < 0.005
    sample = fit_logistic(replace(data, train=Matrix(150, WIDTH, values[:150]), target=targets[0][:150]), shape)
    assert np.abs(sample.head.scores_of(validation) - expected(sample.chosen["C"])).max() > 0.02  # all rows are used


def test_ridge_regression_is_that_of_scikit_learn():
    inputs, _ = problem()
    target = (inputs @ np.arange(WIDTH) + np.random.default_rng(2).normal(size=ROWS)).astype(np.float32) + 40
    (train, validation), targets = matrices(inputs + 7, target)
    shape = Shape(vector_width=WIDTH, mixed_layers=0, handcrafted_width=0, hidden=(), outputs=1)
    fitted = fit_ridge(TrainingData(train, validation, *targets, class_weights=None), shape)
    scaler = StandardScaler().fit(train.values)
    model = Ridge(alpha=fitted.chosen["alpha"]).fit(scaler.transform(train.values), targets[0])
    expected = model.predict(scaler.transform(validation.values))
    assert np.allclose(fitted.head.scores_of(validation)[:, 0], expected, atol=1e-3)
