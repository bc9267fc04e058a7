"""MPNet's own parts; test_encoder.py compares its features with plain transformers."""

import subprocess
import sys

import pytest
import torch

from varve.encoder.kernels.cpu_library import BIAS_PADDING
from varve.encoder.model.attention import Runs
from varve.encoder.model.mpnet import PackedBias


@pytest.mark.slow
def test_the_module_of_mpnet_is_imported_for_mpnet_only():
    code = "import sys, varve.encoder.encoder; sys.exit('transformers.models.mpnet.modeling_mpnet' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bias_matrix_of_a_length_holds_the_bias_of_each_distance():
    longest, length = 7, 4
    by_distance = torch.randn(2, 2 * longest + BIAS_PADDING - 1)
    matrix = PackedBias(torch.tensor([0, 4, 11]), longest, Runs([(0, 1, 4), (4, 1, 7)]), by_distance).matrix(length)
    position = torch.arange(length)
    assert torch.equal(matrix, by_distance[:, position[:, None] - position[None] + longest - 1])
