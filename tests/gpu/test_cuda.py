"""Tests that need a GPU; tests/unit/encoder/test_pack_executor.py covers the logic on a CPU."""

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING

from tests.models import ARCHITECTURES, RAGGED
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.encoder import Encoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXTS = [*RAGGED, *(f"{text} and more of it {number}" for number in range(40) for text in RAGGED)]
MEAN = {"e": Feature(pool="mean", layers="all")}


def relative(got: dict, want: dict) -> float:
    return max(float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])) for name in want)


# The oldest supported transformers does not have all of them.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name in CONFIG_MAPPING])
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


def test_the_order_of_texts_changes_only_the_last_bits_of_half_precision(tiny):
    encoder = Encoder(Model(name=tiny("bert"), max_tokens=128), {"e": Feature(pool="mean")}, device="cuda")
    forward, reverse = encoder(TEXTS)["e"], encoder(TEXTS[::-1])["e"][::-1]
    assert np.abs(forward - reverse).max() <= 4e-3


def test_a_pack_that_exceeds_the_memory_is_split_and_gives_the_same_vectors(tiny):
    spec = Model(name=tiny("bert"), max_tokens=128)
    want = Encoder(spec, {"e": Feature(pool="mean")}, device="cuda")(TEXTS)["e"]
    encoder = Encoder(spec, {"e": Feature(pool="mean")}, device="cuda", tokens_per_pack=1 << 20)
    tokens = encoder.tokenizer([f"{at} {text}" for at, text in enumerate(TEXTS * 64)])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held_bytes = torch.cuda.memory_allocated()
    assert not encoder.start(tokens).result().counts.splits
    pass_bytes = torch.cuda.max_memory_allocated() - held_bytes
    torch.cuda.empty_cache()
    try:
        limit_bytes = torch.cuda.memory_reserved() + pass_bytes // 2
        torch.cuda.set_per_process_memory_fraction(limit_bytes / torch.cuda.mem_get_info()[1])
        encoded = encoder.start(tokens).result()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert encoded.counts.splits > 0
    assert not encoded.reasons
    assert np.abs(encoder(TEXTS)["e"] - want).max() <= 4e-3


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_short_windows_in_half_precision_are_those_of_float32(architecture, tiny):
    heads = "n_heads" if architecture == "distilbert" else "num_attention_heads"
    spec = Model(name=tiny(architecture, **{heads: 2}), max_tokens=40)
    want, got = (
        Encoder(spec.model_copy(update={"dtype": dtype}), MEAN, device="cuda") for dtype in ("float32", "auto")
    )
    assert got.layout == "packed"
    assert relative(got.encode(got.tokenizer(TEXTS)), want.encode(want.tokenizer(TEXTS))) <= 5e-3


def test_windows_of_one_length_in_half_precision_are_those_of_float32(tiny):
    spec = Model(name=tiny("bert", num_attention_heads=2), max_tokens=100)
    texts = [" ".join([f"{at}", *["word"] * 120]) for at in range(300)]
    want, got = (
        Encoder(spec.model_copy(update={"dtype": dtype}), MEAN, device="cuda") for dtype in ("float32", "auto")
    )
    assert relative(got.encode(got.tokenizer(texts)), want.encode(want.tokenizer(texts))) <= 5e-3


@pytest.mark.parametrize("architecture", ["albert", "modernbert"])
def test_compiled_layers_stay_within_half_precision_and_are_compiled_once(architecture, tiny, monkeypatch):
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    spec = Model(name=tiny(architecture), max_tokens=128)
    plain, compiled = (Encoder(spec, MEAN, device="cuda", compiled=compiled) for compiled in (False, True))
    assert compiled.compiled
    for first in range(0, 120, 10):
        texts = TEXTS[first : first + 3 + first]
        assert relative({"e_03": compiled(texts)["e_03"]}, {"e_03": plain(texts)["e_03"]}) <= 5e-3
