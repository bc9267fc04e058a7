"""BERT layers as one call of compiled code each, compared with the same layers step by step."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.models import EVERYTHING, RAGGED, TOLERANCE, worst_difference
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.model.attention import PACKED
from varve.encoder.model.batch import packed_batch
from varve.encoder.model.fused_layers import FusedCpuLayer, fuse_layers, unfuse_layers
from varve.encoder.model.fused_linear import use_library
from varve.encoder.model.layer_hooks import find_layers
from varve.encoder.model.mpnet import adapt_mpnet
from varve.encoder.packing import Pack

BUILT = [kernel for instructions in ("amx", "avx512", "avx2") if (kernel := CpuLibrary.load(instructions))]
HEADS = {"num_attention_heads": 2}  # heads of 16, which fill registers
# The same settings under the names of another config.
OTHER_NAMES = {
    "distilbert": {
        "num_attention_heads": "n_heads",
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
}
# A window of one token, and windows that do not fill a tile of rows.
LENGTHS = (1, 3, 5, 5, 40, 127)

pytestmark = pytest.mark.skipif(find_cpu_library() is None, reason="no compiled library for this machine")


def made(tiny, architecture, **settings):
    """A checkpoint with heads of 16."""
    names = OTHER_NAMES.get(architecture, {})
    return tiny(architecture, **{names.get(name, name): value for name, value in (HEADS | settings).items()})


def load(folder, kernel=None):
    model = AutoModel.from_pretrained(folder).eval()
    use_library(model, kernel or BUILT[0])
    if not adapt_mpnet(model):
        model.set_attn_implementation(PACKED)
    return model


def packed(model):
    draw = np.random.default_rng(0)
    return packed_batch(model, Pack.of_windows([draw.integers(999, 2999, n).astype(np.int32) for n in LENGTHS])).inputs


def are_fused(model):
    return [isinstance(layer.forward, FusedCpuLayer) for layer in find_layers(model)]


@torch.inference_mode()
def run(model):
    return model(**packed(model), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kernel", BUILT, ids=lambda kernel: kernel.instructions)
@pytest.mark.parametrize("shape", [{}, {"hidden_size": 96, "intermediate_size": 1056}, {"hidden_act": "silu"}])
def test_a_layer_in_one_call_has_the_bits_of_its_steps(kernel, shape, tiny, monkeypatch):
    monkeypatch.setattr("varve.encoder.model.attention.find_cpu_library", lambda: kernel)
    model = load(made(tiny, "bert", **shape), kernel)
    steps = run(model)
    assert fuse_layers(model)
    assert are_fused(model) == [True] * 3
    for got, want in zip(run(model), steps, strict=True):
        assert torch.equal(got, want)
    unfuse_layers(model, last=True)
    assert are_fused(model) == [True, True, False]
    unfuse_layers(model)
    assert are_fused(model) == [False] * 3


@pytest.mark.parametrize("kernel", BUILT, ids=lambda kernel: kernel.instructions)
@pytest.mark.parametrize("architecture", ["distilbert", "mpnet"])
@pytest.mark.parametrize("shape", [{}, {"hidden_size": 96, "intermediate_size": 1056}])
def test_a_layer_whose_norms_were_torchs_equals_its_steps_in_one_call(kernel, architecture, shape, tiny):
    model = load(made(tiny, architecture, **shape), kernel)
    steps = run(model)
    assert fuse_layers(model)
    for got, want in zip(run(model), steps, strict=True):
        assert float((got - want).abs().max()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet"])
def test_the_layers_of_berts_family_are_fused_and_equal_plain_transformers(architecture, tiny, plain):
    folder = made(tiny, architecture)
    assert fuse_layers(load(folder))
    encoder = Encoder(Model(name=folder, max_tokens=128), EVERYTHING, device="cpu")
    worst = worst_difference(encoder(RAGGED), [plain(folder)(text) for text in RAGGED])
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.parametrize("architecture", ["albert", "modernbert", "nomic_bert"])
def test_other_layers_are_not_fused(architecture, tiny):
    model = AutoModel.from_pretrained(made(tiny, architecture)).eval()
    use_library(model, BUILT[0])
    assert not fuse_layers(model)


@pytest.mark.parametrize(
    "changed",
    [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"is_decoder": True, "add_cross_attention": True}],
    ids=["heads of 8", "relu", "cross-attention"],
)
def test_layers_that_the_library_does_not_support_are_not_fused(changed, tiny):
    assert not fuse_layers(load(made(tiny, "bert", **changed)))


def test_a_layer_with_berts_modules_but_other_code_is_not_fused(tiny, plain, monkeypatch):
    """As in a model with remote code: the same modules, and one more step between them."""
    folder = made(tiny, "bert")
    layer_class = type(AutoModel.from_pretrained(folder).encoder.layer[0])
    original = layer_class.forward
    monkeypatch.setattr(layer_class, "forward", lambda self, *args, **kwargs: original(self, *args, **kwargs) * 1.5)
    got = Encoder(Model(name=folder, max_tokens=128), {"e": "mean@-1"}, device="cpu")(RAGGED)["e"]
    want = np.stack([plain(folder)(text).hidden_states[-1][0].mean(0).numpy() for text in RAGGED])
    assert np.abs(got - want).max() <= TOLERANCE


def test_layers_are_not_fused_if_attentions_are_requested(tiny, plain):
    folder = made(tiny, "bert")
    columns = Encoder(Model(name=folder, max_tokens=128), {"a": "attentions@2", "e": "mean@-1"}, device="cpu")(RAGGED)
    for row, text in enumerate(RAGGED):
        hidden = plain(folder)(text).hidden_states[-1][0]
        assert np.abs(columns["e"][row] - hidden.mean(0).numpy()).max() <= TOLERANCE
        assert len(columns["a"][row]) == 2 * len(hidden) ** 2


def test_the_last_layer_is_computed_for_cls_only_above_fused_layers(tiny, plain):
    folder = made(tiny, "bert")
    encoder = Encoder(Model(name=folder, max_tokens=128), {"c": "cls@-1", "m": "mean@1"}, device="cpu")
    assert encoder.top_layer == "first tokens"
    got, outputs = encoder(RAGGED), [plain(folder)(text).hidden_states for text in RAGGED]
    assert np.abs(got["c"] - np.stack([hidden[-1][0, 0].numpy() for hidden in outputs])).max() <= TOLERANCE
    assert np.abs(got["m"] - np.stack([hidden[1][0].mean(0).numpy() for hidden in outputs])).max() <= TOLERANCE
