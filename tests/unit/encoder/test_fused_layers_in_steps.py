"""BERT layers as a GPU runs them, in few calls, compared with the same layers step by step; on a CPU here."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.models import TOLERANCE
from varve.encoder.model.attention import PACKED
from varve.encoder.model.batch import dense_batch, packed_batch
from varve.encoder.model.fused_layers import FusedGpuLayer, unfuse_layers
from varve.encoder.model.layer_hooks import compile_layers, find_layers
from varve.encoder.packing import Pack

LENGTHS = (1, 3, 5, 5, 40, 127)


@pytest.fixture
def load(tiny):
    def load(architecture, **settings):
        model = AutoModel.from_pretrained(tiny(architecture, **settings)).eval()
        model.set_attn_implementation(PACKED)
        return model

    return load


def join(model):
    forwards = [FusedGpuLayer.of(layer) for layer in find_layers(model)]
    for layer, forward in zip(find_layers(model), forwards, strict=True):
        if forward:
            layer.forward = forward
    return [forward is not None for forward in forwards]


@torch.inference_mode()
def run(model, lay_out=packed_batch):
    draw = np.random.default_rng(0)
    windows = [draw.integers(999, 2999, n).astype(np.int32) for n in LENGTHS]
    return model(**lay_out(model, Pack.of_windows(windows)).inputs).last_hidden_state


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "electra", "distilbert"])
def test_a_fused_layer_equals_its_steps(architecture, load):
    model = load(architecture)
    steps = run(model)
    assert join(model) == [True] * 3
    assert float((run(model) - steps).abs().max()) <= TOLERANCE
    unfuse_layers(model)
    assert torch.equal(run(model), steps)


def test_a_fused_layer_follows_the_cast_of_its_model(load):
    model = load("bert")
    join(model)
    want = run(model)
    model.to(torch.bfloat16)
    got = run(model)
    assert got.dtype == torch.bfloat16
    assert float((got.float() - want).norm() / want.norm()) <= 3e-2


def test_a_padded_batch_runs_the_original_code(load):
    model = load("bert")
    model.set_attn_implementation("eager")
    want = run(model, partial(dense_batch, token_types=True))
    join(model)
    assert torch.equal(run(model, partial(dense_batch, token_types=True)), want)


@pytest.mark.parametrize("architecture", ["albert", "modernbert", "mpnet", "nomic_bert"])
def test_other_layers_are_not_fused(architecture, tiny):
    model = AutoModel.from_pretrained(tiny(architecture))
    assert not any(FusedGpuLayer.of(layer) for layer in find_layers(model))


def test_fused_layers_are_not_compiled(load):
    model = load("bert")
    join(model)
    assert not compile_layers(model)
