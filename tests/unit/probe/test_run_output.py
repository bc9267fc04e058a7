import numpy as np
import pytest

from tests.probes import problem
from varve.output.run_output import Output, stored_names
from varve.output.vectors import read_vectors


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_stored_dtypes_are_read_as_float32_vectors(dtype, output):
    opened = Output.open(output(dtype=dtype))
    inputs, _ = problem()
    column = opened.features["cls_01"]
    found = read_vectors(opened.read(opened.manifest.parts[1], stored_names([column])), column)
    expected = inputs[200:400]
    if dtype == "binary":
        assert (np.sign(found) == np.where(expected > 0, 1, -1)).all()
    else:
        assert np.abs(found - expected).max() < 0.03
    assert found.dtype == np.float32
