"""Finished runs to train probes on."""

import numpy as np
import pytest

from tests.outputs import column, write_output
from tests.probes import ROWS, WIDTH, problem


@pytest.fixture
def output(tmp_path):
    """(changes) → the folder of a run with two layers of cls, of which layer 1 predicts the label, and kept columns."""

    def make(name="run", *, errors=(), dtype="float32", **kept) -> str:
        inputs, target = problem()
        rng = np.random.default_rng(1)
        features = {
            column("cls_00", WIDTH, layer=0, dtype=dtype): rng.normal(size=inputs.shape).astype(np.float32),
            column("cls_01", WIDTH, layer=1, dtype=dtype): inputs,
        }
        labels = np.array(["ham", "spam", "eggs"], object)[target]
        columns = {
            "label": labels.tolist(),
            "doc": [f"doc {row // 3}" for row in range(ROWS)],
            "length": (target * 0.7 + rng.normal(size=ROWS)).tolist(),
            "text": [f"{word} number {row}" for row, word in enumerate(rng.choice(["red", "blue"], ROWS))],
            **kept,
        }
        return write_output(tmp_path / name, features, columns, errors=errors)

    return make
