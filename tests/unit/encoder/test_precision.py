"""Half precision and compiled layers are close to float32."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.models import EVERYTHING, RAGGED, TOLERANCE
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder import loaded_model
from varve.encoder.encoder import Encoder
from varve.encoder.model.attention import PACKED
from varve.encoder.model.batch import packed_batch
from varve.encoder.model.layer_hooks import compile_layers, find_layers
from varve.encoder.model.mpnet import adapt_mpnet
from varve.encoder.packing import Pack


@pytest.fixture(autouse=True)
def bfloat16_by_torch(monkeypatch):
    """On a CPU without bfloat16 instructions torch computes it slowly."""
    monkeypatch.setattr(loaded_model, "supports_bfloat16", lambda: True)


@pytest.mark.slow
def test_half_precision_is_close_to_float32(minilm):
    features = {"e": Feature(pool="mean", normalize=True)}
    exact = Encoder(Model(name=minilm), features, device="cpu")(RAGGED)["e"]
    half = Encoder(Model(name=minilm, dtype="bfloat16"), features, device="cpu")(RAGGED)["e"]
    assert half.dtype == np.float32
    assert np.linalg.norm(half - exact, axis=1).max() < 3e-2


def test_windows_that_overflow_in_float16_are_encoded_in_bfloat16(tiny):
    folder = tiny("bert", intermediate_size=40)  # not shared with other tests: its weights are changed
    spec = Model(name=folder, max_tokens=128)
    # Weights as large as those of checkpoints that were trained in bfloat16: 1e4 * 48 terms exceed 65,504.
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight *= 3e5
        model.encoder.layer[1].output.dense.weight *= 1e-2
    model.save_pretrained(folder)
    want = Encoder(spec, EVERYTHING, device="cpu")(RAGGED)
    encoder = Encoder(spec.model_copy(update={"dtype": "float16"}), EVERYTHING, device="cpu")
    encoded = encoder.start(encoder.tokenizer(RAGGED)).result()
    assert encoded.counts.overflows == len(RAGGED)
    for name in ("mean_03", "cls_03"):
        got = encoded.columns[name]
        assert np.isfinite(got).all()
        assert np.linalg.norm(got - want[name]) <= 3e-2 * np.linalg.norm(want[name])


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_half_precision_of_the_real_minilm_stays_within_its_bound_of_float32(dtype, bound, minilm):
    spec = Model(name=minilm, max_tokens=128)
    want = Encoder(spec, {"e": Feature(pool="mean")}, device="cpu")(RAGGED)["e"]
    half = Encoder(spec.model_copy(update={"dtype": dtype}), {"e": Feature(pool="mean")}, device="cpu")
    got = half(RAGGED)["e"]
    assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want)


@pytest.mark.slow
def test_compiled_layers_give_the_numbers_of_plain_ones(tiny):
    model = AutoModel.from_pretrained(tiny("bert"), attn_implementation="eager").eval()
    windows = [torch.randint(1000, 2000, (2, length)) for length in (7, 30, 12)]
    with torch.inference_mode():
        want = [model(input_ids=ids).last_hidden_state for ids in windows]
        compile_layers(model)
        for ids, expected in zip(windows, want, strict=True):
            assert (model(input_ids=ids).last_hidden_state - expected).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "modernbert"])
def test_layers_over_packed_rows_are_compiled_once_for_windows_of_any_lengths(architecture, tiny):
    """As on a GPU; here with heads of 8, which torch computes on a CPU too."""
    model = AutoModel.from_pretrained(tiny(architecture)).eval()
    if not adapt_mpnet(model):
        model.set_attn_implementation(PACKED)
    packs = [
        [np.arange(1000, 1000 + length, dtype=np.int32) for length in of]
        for of in ((3, 5, 5, 40), (9, 9, 77), (2, 3, 4, 5, 6, 7, 8), (11, 12))
    ]
    batches = [packed_batch(model, Pack.of_windows(windows)).inputs for windows in packs]
    graphs = []

    def compiler(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    with torch.inference_mode():
        want = [model(**batch).last_hidden_state for batch in batches]
        for layer in find_layers(model):
            layer.forward = torch.compile(layer.forward, dynamic=True, backend=compiler)
        counts = []
        for batch, expected in zip(batches, want, strict=True):
            assert (model(**batch).last_hidden_state - expected).abs().max() <= TOLERANCE
            counts.append(len(graphs))
    assert counts == counts[:1] * len(packs)
    assert graphs
