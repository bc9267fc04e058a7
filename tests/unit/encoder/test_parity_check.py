"""The comparison with eager transformers finds code that is wrong for some windows only."""

import math

import numpy as np
import pytest

from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.model import attention
from varve.encoder.model.attention import Runs

MEAN = {"e": "mean@-1"}


def spoil(monkeypatch, owner, name, *, factor, above=0):
    """Multiply what a function returns for windows of more than `above` tokens."""
    correct = getattr(owner, name)

    def wrong(*args, **kwargs):
        lengths = [length for runs in args if isinstance(runs, Runs) for _, _, length in runs.items]
        longest = max(lengths or [arg for arg in args if isinstance(arg, int)])
        return correct(*args, **kwargs) * (factor if longest > above else 1)

    monkeypatch.setattr(owner, name, wrong)


def load(tiny, heads, max_tokens):
    folder = tiny("bert", num_attention_heads=heads, max_position_embeddings=520)
    return folder, Encoder(Model(name=folder, max_tokens=max_tokens), MEAN, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "above"), [(1.5, 0), (1.5, 256), (math.nan, 0), (math.nan, 256)])
@pytest.mark.parametrize(
    ("heads", "owner", "name"),
    [pytest.param(2, CpuLibrary, "attend", id="compiled"), pytest.param(4, attention, "attend_runs", id="torch")],
)
def test_attention_that_is_wrong_above_a_length_is_replaced_at_load(
    heads, owner, name, factor, above, tiny, monkeypatch
):
    if owner is CpuLibrary and find_cpu_library() is None:
        pytest.skip("nothing was compiled for this machine")
    assert load(tiny, heads, 400)[1].layout == "packed"
    spoil(monkeypatch, owner, name, factor=factor, above=above)
    encoder = load(tiny, heads, 400)[1]
    assert encoder.layout == "dense"
    assert encoder.layout_reason.startswith("packed rows differ by ")


def test_windows_longer_than_the_job_allows_are_not_compared(tiny, monkeypatch):
    spoil(monkeypatch, attention, "attend_runs", factor=1.5, above=256)
    assert load(tiny, 4, 256)[1].layout == "packed"


@pytest.mark.skipif(find_cpu_library() is None, reason="nothing was compiled for this machine")
def test_a_fused_layer_that_is_wrong_in_long_windows_only_is_not_used(tiny, plain, monkeypatch):
    spoil(monkeypatch, CpuLibrary, "layer", factor=1.5, above=256)
    folder, encoder = load(tiny, 2, 400)
    assert encoder.layout == "packed"
    text = "long " * 350
    want = plain(folder)(text, max_tokens=400).hidden_states[-1][0].mean(0).numpy()
    assert np.abs(encoder([text])["e"][0] - want).max() <= 2e-5
