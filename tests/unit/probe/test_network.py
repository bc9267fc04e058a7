import numpy as np
import torch

from tests.outputs import column, write_output
from tests.probes import ROWS, train


def test_mlp_on_vectors_and_handcrafted_columns_predicts_what_neither_predicts_alone(tmp_path):
    rng = np.random.default_rng(5)
    side, sign = rng.random((2, ROWS)) < 0.5
    inputs = (rng.normal(size=(ROWS, 4)) + 2 * side[:, None]).astype(np.float32)
    kept = {"label": np.where(side ^ sign, "same", "other").tolist(), "sign": sign.tolist()}
    path = write_output(tmp_path / "run", {column("cls_01", 4, layer=1): inputs}, kept)
    threads = torch.get_num_threads()
    study = train(path, features=("cls_01",), handcrafted=("sign",), model="mlp")
    accuracy = {result.name: result.test.metrics["accuracy"].value for result in study.results}
    assert accuracy["cls_01"] > max(accuracy["hand-crafted alone"], accuracy["cls_01 alone"]) + 0.15
    assert torch.get_num_threads() == threads
