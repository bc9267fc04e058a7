"""Data and calls that the tests of probes share."""

import numpy as np

from varve.output.run_output import Output
from varve.probe.data.dataset import LabelledRows, Question, load_rows
from varve.probe.models.study import Study, study

ROWS, WIDTH, CLASSES = 600, 12, 3


def problem(rows=ROWS, width=WIDTH, classes=CLASSES, *, noise=1.5, seed=0):
    """(vectors around the centre of their class, class of each)."""
    rng = np.random.default_rng(seed)
    target = rng.integers(classes, size=rows)
    centres = rng.normal(size=(classes, width))
    return (centres[target] + noise * rng.normal(size=(rows, width))).astype(np.float32), target.astype(np.int32)


def train(path, label="label", *, memory=10**9, text="none", model="auto", **question) -> Study:
    return study(path, Question(label=label, **question), model=model, text=text, memory_bytes=memory)


def read_rows(path, label="label", **question) -> LabelledRows:
    return load_rows(Output.open(path), Question(label=label, **question))
