"""The highest layer computed for CLS tokens only, compared with plain transformers and with the full layer."""

import numpy as np
import pytest
from transformers import AutoModel

from tests.models import ARCHITECTURES, POOLS, RAGGED, TOLERANCE, leave_all_to_torch
from varve.config.model import Model
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.layer_hooks import find_layers
from varve.encoder.model.parity_check import is_cls_only_exact

# Architectures whose last layer can be computed for CLS tokens only.
NARROW = {"bert", "roberta", "xlm-roberta", "electra", "mpnet"}
NEIGHBOURS = 2e-6  # see test_batch_invariance.py


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cls_vectors_equal_plain_transformers(architecture, compiled, tiny, plain, monkeypatch):
    if not compiled:
        leave_all_to_torch(monkeypatch)
    folder = tiny(architecture)
    encoder = Encoder(Model(name=folder, max_tokens=128), {"cls": "cls@-1"}, device="cpu")
    assert describe(encoder)["top_layer"] == ("first tokens" if architecture in NARROW else "all tokens")
    got = encoder(RAGGED)["cls"]
    want = [plain(folder)(text).hidden_states[-1][0, 0].numpy() for text in RAGGED]
    assert np.abs(got - np.stack(want)).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("features", "narrow"),
    [
        ({"e": "cls@0,1,2"}, True),
        ({"e": "cls@2", "m": "mean@0,1", "t": "tokens@1"}, True),
        ({"e": "cls@0"}, False),
        ({"e": "cls@2", "m": "mean@2"}, False),
        ({"e": "last@2", "c": "cls@1"}, False),
        ({"e": "cls@2", "t": "tokens@2"}, False),
        ({"e": "cls@2", "a": "attentions@1"}, False),
    ],
)
def test_the_highest_layer_is_reduced_only_if_all_its_features_are_cls(features, narrow, tiny, plain):
    folder = tiny("bert")
    encoder = Encoder(Model(name=folder, max_tokens=128), features, device="cpu")
    assert encoder.top_layer == ("first tokens" if narrow else "all tokens")
    columns, outputs = encoder(RAGGED), [plain(folder)(text) for text in RAGGED]
    for column in encoder.feature_plan.columns:
        if column.pool in POOLS:
            for got, output in zip(columns[column.name], outputs, strict=True):
                hidden = output.hidden_states[column.layers[0]][0]
                hidden = hidden[1:-1] if column.pool == "tokens" else hidden
                assert np.abs(got - POOLS[column.pool](hidden).numpy()).max(initial=0) <= TOLERANCE, column.name


def test_the_pooler_of_a_reduced_layer_equals_plain_transformers(tiny, plain):
    folder = tiny("bert")
    encoder = Encoder(Model(name=folder, max_tokens=128), {"p": "pooler"}, device="cpu")
    assert encoder.top_layer == "first tokens"
    want = np.stack([plain(folder)(text).pooler_output[0].numpy() for text in RAGGED])
    assert np.abs(encoder(RAGGED)["p"] - want).max() <= TOLERANCE


@pytest.mark.parametrize("compiled", [True, False])
def test_a_cls_vector_depends_on_pack_and_thread_in_the_last_bits_at_most(compiled, tiny, monkeypatch):
    if not compiled:
        leave_all_to_torch(monkeypatch)
    spec = Model(name=tiny("bert"), max_tokens=128)
    texts = [f"{text} {number}" for number in range(12) for text in RAGGED]
    one = Encoder(spec, {"e": "cls@-1"}, device="cpu", tokens_per_pack=64, threads=1)
    together = Encoder(spec, {"e": "cls@-1"}, device="cpu", tokens_per_pack=64, threads=3)(texts)["e"]
    assert np.array_equal(one(texts)["e"], together)
    alone = np.concatenate([one([text])["e"] for text in texts])
    assert np.abs(alone - together).max() <= NEIGHBOURS


def test_a_hook_on_another_layer_is_detected(tiny):
    model = AutoModel.from_pretrained(tiny("bert"), attn_implementation="packed").eval()
    below = ClsOnlyLayer(find_layers(model)[0].attention.output)
    assert not is_cls_only_exact(model, below, 128)
    last = ClsOnlyLayer.of(model)
    assert last is not None
    assert is_cls_only_exact(model, last, 128)
