"""bfloat16 products in compiled code, with emulated instructions, and with the CPU's own where it has them."""

import platform
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from tests.emulated_libraries import KINDS, build_emulated
from tests.models import RAGGED
from varve.config.model import Model
from varve.encoder import loaded_model
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import Activation, CpuLibrary, find_cpu_library, supports_bfloat16
from varve.encoder.kernels.cpu_weights import PackedWeights, WeightArena
from varve.encoder.model import parity_check
from varve.encoder.model.fused_linear import FeedForward, Gated, Linear, LinearNorm
from varve.errors import JobError

CAN_BUILD = platform.machine() == "x86_64" and shutil.which("cc") and find_cpu_library() is not None
NATIVE = [lib for name in ("amx", "avx512") if (lib := CpuLibrary.load(name, torch.bfloat16))]
BFLOAT16 = [*(kind for kind in KINDS if kind[1] == torch.bfloat16), *NATIVE]
KERNELS = [*(kind for kind in KINDS if kind[1] == torch.float32), *BFLOAT16]

pytestmark = [
    pytest.mark.skipif(not CAN_BUILD, reason="needs x86-64 with AVX2 and a C compiler"),
    pytest.mark.timeout(300),  # the compiler takes most of it
    pytest.mark.usefixtures("seeded"),
]


def label(kind):
    return f"emulated {kind[0]} {kind[1]}" if isinstance(kind, tuple) else f"{kind.instructions} bfloat16"


@pytest.fixture
def seeded():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return build_emulated(tmp_path_factory.mktemp("emulated") / "compiled")


@pytest.fixture
def kernel(request, emulated):
    return emulated[request.param] if isinstance(request.param, tuple) else request.param


each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=label, indirect=True)
each_bfloat16_kernel = pytest.mark.parametrize("kernel", BFLOAT16, ids=label, indirect=True)


def pack(kernel, linear, kind=PackedWeights, **more):
    return kind(linear, kernel, WeightArena(linear.weight.numel(), [], kernel.weight_dtype), **more)


def rounded(kernel, values):
    """Values as a product of this library reads them, in float64."""
    return values.to(kernel.weight_dtype).double()


def plain(kernel, linear, rows):
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(rounded(kernel, rows), rounded(kernel, linear.weight), bias)


# Sums in float32 of products that are exact: up to 1e-6 for the sums of unit size below.
SUMS = {"atol": 5e-6, "rtol": 5e-6}


@each_kernel
@pytest.mark.parametrize("rows", [1, 13, 33])
def test_a_linear_layer_equals_float64_of_the_rounded_numbers(kernel, rows):
    linear, hidden = nn.Linear(96, 160), torch.randn(rows, 96)
    want = plain(kernel, linear, hidden)
    layer = pack(kernel, linear, Linear)
    assert torch.equal(layer.weight, linear.weight.to(kernel.weight_dtype))
    torch.testing.assert_close(layer(hidden), want.float(), **SUMS)
    layer.activation = Activation.SILU
    torch.testing.assert_close(layer(hidden), nn.functional.silu(want).float(), **SUMS)


@each_kernel
@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_block_rounds_its_inner_values_once(kernel, gated):
    first, factors, second = nn.Linear(64, 128), nn.Linear(64, 128), nn.Linear(128, 64)
    hidden, norm = torch.randn(45, 64), nn.LayerNorm(64)
    inner = nn.functional.gelu(plain(kernel, first, hidden))
    if gated:
        inner = inner * plain(kernel, factors, hidden)
    want = plain(kernel, second, inner.float())
    packed, last = pack(kernel, first), pack(kernel, second, depth=64)
    if gated:
        got = Gated(packed, Activation.GELU, pack(kernel, factors), last)(hidden)
    else:
        want = norm.double()(want + hidden.double())
        got = FeedForward(packed, Activation.GELU, last, norm.float())(hidden)
    # An inner value at the middle of two bfloat16 numbers may be rounded to the other one: 2^-8 of it, times a weight.
    atol = 5e-6 if kernel.weight_dtype == torch.float32 else 2e-3
    torch.testing.assert_close(got, want.float(), atol=atol, rtol=1e-5)
    assert float((got - want).square().mean().sqrt()) <= (1e-6 if kernel.weight_dtype == torch.float32 else 2e-4)


@each_kernel
def test_a_row_has_the_same_bits_with_any_other_rows(kernel):
    hidden, residual = torch.randn(110, 64), torch.randn(110, 96)
    linear, normed = (
        pack(kernel, nn.Linear(64, 96), Linear),
        LinearNorm(pack(kernel, nn.Linear(64, 96)), nn.LayerNorm(96)),
    )
    block = FeedForward(pack(kernel, nn.Linear(64, 128)), Activation.GELU, pack(kernel, nn.Linear(128, 64)), None)
    together = [linear(hidden), normed(hidden, residual), block(hidden)]
    for rows in (1, 12, 33, 97):
        x, added = hidden[-rows:].clone(), residual[-rows:].clone()
        for got, want in zip([linear(x), normed(x, added), block(x)], together, strict=True):
            assert torch.equal(got, want[-rows:]), rows


@each_kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row_and_nothing_is_written_beyond(kernel, bad):
    hidden = torch.randn(30, 64)
    block = FeedForward(pack(kernel, nn.Linear(64, 64)), Activation.GELU, pack(kernel, nn.Linear(64, 64)), None)
    want = block(hidden)
    hidden[17, 3] = bad
    got, others = block(hidden), torch.arange(30) != 17
    assert torch.equal(got[others], want[others])
    assert not torch.isfinite(got[17]).any()
    linear, out = pack(kernel, nn.Linear(64, 96)), torch.full((32, 96), 7.0)
    assert kernel.library.linear(hidden.data_ptr(), 30, linear.weights, 1, out[1:].data_ptr()) == 0
    assert (out[[0, -1]] == 7).all()


@each_kernel
def test_maxima_of_windows_equal_those_of_the_linear_layer(kernel):
    lengths, linear = [1, 33, 2, 5], nn.Linear(64, 96)
    hidden = torch.randn(sum(lengths), 64)
    packed, offsets = pack(kernel, linear), torch.tensor([0, *torch.tensor(lengths).cumsum(0)])
    got = kernel.linear_maximum(hidden, offsets, packed.weights)
    products = plain(kernel, linear, hidden) - linear.bias.double()
    torch.testing.assert_close(got, torch.stack([x.amax(0) for x in products.split(lengths)]).float(), **SUMS)


@each_bfloat16_kernel
def test_denormal_inputs_count_as_zero_and_large_ones_become_infinite(kernel):
    linear = nn.Linear(32, 32, bias=False)
    linear.weight.copy_(torch.eye(32))
    values = torch.zeros(2, 32)
    values[0, :3] = torch.tensor([1e-40, 1.00390625, 1.01171875])  # the last two: halfway, to the even 1.0 and 1.015625
    values[1, 0] = 3.4e38
    got = pack(kernel, linear, Linear)(values)
    assert got[0, :3].tolist() == [0, 1.0, 1.015625]
    assert not torch.isfinite(got[1, 0])


@pytest.fixture
def use(monkeypatch):
    """Makes encoders use a bfloat16 library as if the CPU had its instructions."""

    def use_library(library):
        float32 = find_cpu_library()
        monkeypatch.setattr(loaded_model, "supports_bfloat16", lambda: True)
        found = {torch.float32: float32, torch.bfloat16: library}
        monkeypatch.setattr(loaded_model, "find_cpu_library", lambda dtype=torch.float32: found[dtype])

    return use_library


TEXTS = RAGGED[:4]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", BFLOAT16[1:2], ids=label, indirect=True)
def test_the_real_minilm_stays_within_its_bound_of_float32_alone_and_in_a_pack(kernel, minilm, use):
    features, spec = {"e": "mean@-1", "c": "cls@2"}, Model(name=minilm, max_tokens=128)
    want = Encoder(spec, features, device="cpu")(TEXTS)
    use(kernel)
    encoder = Encoder(spec.model_copy(update={"dtype": "bfloat16"}), features, device="cpu")
    got = encoder(TEXTS)
    described = describe(encoder)
    assert (described["linear"], described["dtype"]) == (kernel.instructions, "bfloat16")
    assert described["attention"] != "torch"
    for name in features:
        assert np.isfinite(got[name]).all()
        error = np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])
        assert 1e-4 < error <= 6e-3, name
        cosine = (
            (got[name] * want[name]).sum(1) / np.linalg.norm(got[name], axis=1) / np.linalg.norm(want[name], axis=1)
        )
        assert cosine.min() >= 0.99995
    alone = encoder(TEXTS[3:4])
    for name in features:
        assert np.array_equal(alone[name][0], got[name][3])


@pytest.mark.parametrize("kernel", BFLOAT16[1:2], ids=label, indirect=True)
@pytest.mark.parametrize(
    ("architecture", "more"), [("bert", {"num_attention_heads": 2}), ("modernbert", {}), ("deberta-v2", {})]
)
def test_models_of_every_layout_keep_everything_but_products_in_float32(kernel, architecture, more, tiny, use):
    """One call per layer, steps, and padded batches."""
    spec, features = Model(name=tiny(architecture, **more), max_tokens=64), {"e": "mean@-1", "t": "tokens@1"}
    want = Encoder(spec, features, device="cpu")(TEXTS)
    use(kernel)
    encoder = Encoder(spec.model_copy(update={"dtype": "bfloat16"}), features, device="cpu")
    got = encoder(TEXTS)
    assert describe(encoder)["linear"] == kernel.instructions
    error = np.linalg.norm(got["e"] - want["e"]) / np.linalg.norm(want["e"])
    assert 1e-5 < error <= 1e-2


@pytest.mark.parametrize("kernel", BFLOAT16[1:2], ids=label, indirect=True)
def test_a_broken_bfloat16_kernel_is_refused_when_the_model_is_loaded(kernel, tiny, use, monkeypatch):
    use(kernel)
    repack = parity_check.repack_layers

    def break_weights(model, library):
        repack(model, library)
        for module in model.modules():
            if isinstance(module, PackedWeights):
                module.panels.copy_(module.panels.roll(1))

    monkeypatch.setattr(parity_check, "repack_layers", break_weights)
    with pytest.raises(JobError, match="dtype: float32"):
        Encoder(Model(name=tiny("bert"), max_tokens=64, dtype="bfloat16"), {"e": "mean@-1"}, device="cpu")


def test_a_cpu_without_bfloat16_refuses_it_and_names_the_instructions(tiny, monkeypatch):
    monkeypatch.setattr(loaded_model, "supports_bfloat16", lambda: False)
    spec = Model(name=tiny("bert"), max_tokens=64, dtype="bfloat16")
    with pytest.raises(JobError, match=r"AVX512-BF16 or AMX.*dtype: float32"):
        Encoder(spec, {"e": "mean@-1"}, device="cpu")


@pytest.mark.parametrize(
    ("capability", "limit", "has_instructions", "supported"),
    [
        ("AVX512", "", True, True),
        ("AVX512", "AVX512_CORE_BF16", True, True),
        ("AVX512", "AVX512_CORE_AMX", True, True),
        ("AVX512", "AVX512_CORE_VNNI", True, False),
        ("AVX2", "", True, False),
        ("AVX512", "", False, False),
    ],
)
def test_bfloat16_needs_the_instructions_within_the_limits_of_torch(
    capability, limit, has_instructions, supported, monkeypatch
):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    cpu = {"architecture": "x86_64", "avx512_bf16": has_instructions, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert supports_bfloat16() == supported
    if not supported:
        assert find_cpu_library(torch.bfloat16) is None or not has_instructions


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize(("library", "instruction"), [("amx_bfloat16", "tdpbf16ps"), ("avx512_bfloat16", "vdpbf16ps")])
def test_the_built_libraries_contain_the_instructions(library, instruction):
    file = loaded_model.__file__.replace("loaded_model.py", f"kernels/compiled/{library}.so")
    listing = subprocess.run(["objdump", "-d", file], capture_output=True, text=True, check=True).stdout
    assert instruction in listing
