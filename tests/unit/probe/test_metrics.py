import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error, r2_score, roc_auc_score

from varve.probe.models.metrics import ClassificationMetrics, RegressionMetrics, evaluate, measure_calibration


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_metrics_are_those_of_scikit_learn_under_any_weights(classes):
    rng = np.random.default_rng(0)
    target = rng.integers(classes, size=300)
    scores = np.round(rng.dirichlet(np.ones(classes), 300) + 0.3 * np.eye(classes)[target], 1)  # with ties
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float64)
    times = rng.integers(0, 4, 300)
    repeated = np.repeat(np.arange(300), times)
    found = ClassificationMetrics(scores, target)(times.astype(float))
    t, s = target[repeated], scores[repeated]
    assert found["accuracy"] == pytest.approx(accuracy_score(t, s.argmax(axis=1)))
    assert found["macro_f1"] == pytest.approx(f1_score(t, s.argmax(axis=1), average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss(t, np.maximum(s, 1e-12), labels=range(classes)), rel=1e-3)
    expected = roc_auc_score(t, s[:, 1] if classes == 2 else s, multi_class="ovr", average="macro")
    assert found["auc"] == pytest.approx(expected)


def test_regression_metrics_are_those_of_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    predicted = (target + rng.normal(size=200)).astype(np.float32)
    found = RegressionMetrics(predicted[:, None], target)()
    assert found["r2"] == pytest.approx(r2_score(target, predicted), abs=1e-6)
    assert found["mae"] == pytest.approx(mean_absolute_error(target, predicted), abs=1e-6)
    assert found["spearman"] == pytest.approx(spearmanr(target, predicted).statistic, abs=1e-6)


def test_intervals_are_wider_if_the_rows_of_a_group_agree():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(40) < 0.7, 10)
    target = np.zeros(400, np.int64)
    scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
    single = evaluate(scores, target, np.arange(400), 0).metrics["accuracy"]
    grouped = evaluate(scores, target, np.repeat(np.arange(40), 10), 0).metrics["accuracy"]
    assert single.value == grouped.value
    assert grouped.high - grouped.low > 2 * (single.high - single.low)


def test_calibration_error_is_near_zero_for_true_probabilities_and_large_for_overconfident_ones():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    target = (rng.random(20_000) > confidence).astype(int)
    assert measure_calibration(np.stack([confidence, 1 - confidence], axis=1), target).error < 0.02
    overconfident = np.full((20_000, 2), [0.99, 0.01])
    assert measure_calibration(overconfident, target).error == pytest.approx(0.99 - confidence.mean(), abs=0.02)
