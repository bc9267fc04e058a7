import numpy as np
import pytest

from tests.probes import ROWS, problem, train


@pytest.mark.slow
def test_best_layer_is_found_and_the_same_command_gives_the_same_metrics(output):
    path = output()
    first, second = train(path), train(path)
    assert first.best.name in {"cls_01", "cls: all layers side by side", "cls: learned mix of layers"}
    metrics = {result.name: result.test.metrics for result in first.results}
    assert metrics == {result.name: result.test.metrics for result in second.results}
    assert metrics["cls_01"]["accuracy"].low > metrics["cls_00"]["accuracy"].high
    mix = next(result for result in first.results if result.kind == "mix")
    assert mix.head.layer_weights[1] > 0.6


def test_shuffled_labels_are_at_chance(output):
    labels = np.random.default_rng(3).permutation(np.repeat(["a", "b"], ROWS // 2)).tolist()
    for model in ("logistic", "mlp"):
        result = train(output(f"run-{model}", label=labels), features=("cls_01",), model=model).results[0]
        auc = result.test.metrics["auc"]
        assert auc.low < 0.5 < auc.high + 0.02


def test_numbers_are_a_regression(output):
    inputs, _ = problem()
    path = output(score=(inputs[:, 2] * 3 + 10).tolist())
    study = train(path, "score", features=("cls_01", "cls_00"))
    metrics = {result.name: result.test.metrics for result in study.results}
    assert study.best.name == "cls_01"
    assert metrics["cls_01"]["r2"].value > 0.99
    assert metrics["mean of the label"]["r2"].value < 0.05
    network = train(path, "score", features=("cls_01",), model="mlp")
    assert network.results[0].test.metrics["mae"].value < 1
