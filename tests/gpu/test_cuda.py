"""What only a GPU can show. Skipped without one; the same logic runs on a CPU in tests/unit/test_lanes.py."""

import numpy as np
import pytest
import torch

from pipeline.encoder.encoder import Encoder
from pipeline.spec.feature import Feature
from pipeline.spec.model import Model
from tests.models import ARCHITECTURES, RAGGED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXTS = [*RAGGED, *(f"{text} and more of it {number}" for number in range(40) for text in RAGGED)]
MEAN = {"e": Feature(pool="mean", layers="all")}


def relative(got: dict, want: dict) -> float:
    return max(float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])) for name in want)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_on_cuda_equals_float32_on_the_cpu(architecture, tiny):
    spec = Model(name=tiny(architecture), max_tokens=128, dtype="float32")
    want, got = (Encoder(spec, MEAN, device=device).encode for device in ("cpu", "cuda"))
    tokens = Encoder(spec, MEAN, device="cpu").tokenizer(TEXTS)
    assert relative(got(tokens), want(tokens)) <= 1e-4


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_half_precision_of_a_real_shape_stays_within_its_bound(dtype, bound, tiny):
    folder = tiny("bert", hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12)
    spec = Model(name=folder, max_tokens=128)
    mean = {"e": Feature(pool="mean")}
    want = Encoder(spec.model_copy(update={"dtype": "float32"}), mean, device="cuda")(TEXTS)
    half = Encoder(spec.model_copy(update={"dtype": dtype}), mean, device="cuda")
    assert half.layout == "packed"
    assert relative({"e": half(TEXTS)["e"]}, {"e": want["e"]}) <= bound


def test_the_order_of_texts_changes_half_precision_in_its_last_bits_alone(tiny):
    encoder = Encoder(Model(name=tiny("bert"), max_tokens=128), {"e": Feature(pool="mean")}, device="cuda")
    forth, back = encoder(TEXTS)["e"], encoder(TEXTS[::-1])["e"][::-1]
    assert np.abs(forth - back).max() <= 4e-3


def test_a_pack_beyond_the_memory_is_split_and_gives_the_same_vectors(tiny):
    spec = Model(name=tiny("bert"), max_tokens=128)
    want = Encoder(spec, {"e": Feature(pool="mean")}, device="cuda")(TEXTS)["e"]
    encoder = Encoder(spec, {"e": Feature(pool="mean")}, device="cuda", tokens_per_pack=1 << 20)
    texts = TEXTS * 64
    try:
        torch.cuda.set_per_process_memory_fraction(2 * torch.cuda.memory_allocated() / torch.cuda.mem_get_info()[1])
        encoded = encoder.start(encoder.tokenizer([f"{at} {text}" for at, text in enumerate(texts)])).result()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoded.counts.splits > 0
    assert not encoded.reasons
    assert np.abs(encoder(TEXTS)["e"] - want).max() <= 4e-3


def test_compiled_layers_stay_within_half_precision(tiny):
    spec = Model(name=tiny("bert"), max_tokens=128)
    plain, compiled = (Encoder(spec, MEAN, device="cuda", compiled=compiled) for compiled in (False, True))
    assert (
        relative(
            {name: compiled(TEXTS)[name] for name in ("e_00", "e_03")},
            {name: plain(TEXTS)[name] for name in ("e_00", "e_03")},
        )
        <= 5e-3
    )
