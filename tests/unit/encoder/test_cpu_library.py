"""The compiled library and its attention; `make install` builds it on an x86-64 machine with a C compiler."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from varve.config.model import Model
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import BIAS_PADDING, CpuLibrary, can_attend, find_cpu_library
from varve.encoder.kernels.cpu_weights import PackedWeights, WeightArena

ROOT = Path(__file__).parents[3]
TOLERANCE = 3e-6  # for values of about 1, as torch's own kernel
LIBRARIES = {"amx.so", "avx512.so", "avx2.so", "amx_bfloat16.so", "avx512_bfloat16.so"}
BUILT = [kernel for instructions in ("amx", "avx512", "avx2") if (kernel := CpuLibrary.load(instructions))]
CAN_BUILD = platform.machine() == "x86_64" and shutil.which("cc") is not None

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason="needs x86-64 and a C compiler")
each_kernel = pytest.mark.parametrize("kernel", BUILT, ids=lambda kernel: kernel.instructions)


def offsets(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def attend(kernel, qkv, lengths, scaling=None, reach=None, bias=None):
    assert can_attend(*qkv)
    return kernel.attend(*qkv, offsets(lengths), max(lengths), scaling, reach, bias)


def in_double(qkv, lengths, scaling=None, reach=None, bias=None):
    attended = []
    for window in zip(*(x.double().split(lengths) for x in qkv), strict=True):
        at = torch.arange(len(window[0]))
        difference = at[:, None] - at[None]
        mask = None if reach is None else difference.abs() <= reach
        if bias is not None:
            added = bias.double()[:, difference + max(lengths) - 1]
            mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
        q, k, v = (x.transpose(0, 1) for x in window)
        attended.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).transpose(0, 1))
    return torch.cat(attended)


def draw(tokens, heads, dim, seed=0):
    return torch.randn(3, tokens, heads, dim, generator=torch.Generator().manual_seed(seed)).unbind(0)


def test_the_kernel_was_built_where_it_can_be():
    assert find_cpu_library() in BUILT


@pytest.mark.slow
@each_kernel
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 128])
def test_windows_of_every_length_equal_attention_in_double(kernel, dim):
    lengths = [*range(1, 70), 128, 257, 512]
    qkv = draw(sum(lengths), 2, dim)
    got = attend(kernel, qkv, lengths)
    assert got.shape == qkv[0].shape
    assert float((got - in_double(qkv, lengths)).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize("scaling", [0.3, 0.02])
def test_scores_are_scaled(kernel, scaling):
    qkv = draw(40, 3, 32)
    assert float((attend(kernel, qkv, [33, 7], scaling) - in_double(qkv, [33, 7], scaling)).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize("reach", [0, 1, 3, 15, 16, 17, 64, 500])
def test_tokens_out_of_reach_have_no_weight(kernel, reach):
    lengths = [1, 2, 7, 16, 17, 33, 64, 129, 300]
    qkv = draw(sum(lengths), 2, 32)
    want = in_double(qkv, lengths, reach=reach)
    assert float((attend(kernel, qkv, lengths, reach=reach) - want).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize("reach", [None, 20])
def test_a_bias_by_distance_is_added_to_the_scores_of_each_head(kernel, reach):
    lengths = [1, 2, 7, 15, 16, 17, 33, 48, 64, 129, 300]
    qkv = draw(sum(lengths), 3, 32)
    bias = torch.randn(3, 2 * max(lengths) + BIAS_PADDING - 1, generator=torch.Generator().manual_seed(1))
    want = in_double(qkv, lengths, reach=reach, bias=bias)
    assert float((attend(kernel, qkv, lengths, reach=reach, bias=bias) - want).abs().max()) <= TOLERANCE
    assert float((attend(kernel, qkv, lengths, reach=reach) - want).abs().max()) > 0.1


@each_kernel
def test_nan_out_of_reach_has_no_effect(kernel):
    q, k, v = draw(200, 2, 32)
    want = attend(kernel, (q, k, v), [200], reach=20)
    for x in (k, v):
        broken = x.clone()
        broken[199] = float("nan")
        got = attend(kernel, [broken if y is x else y for y in (q, k, v)], [200], reach=20)
        assert torch.equal(got[:100], want[:100])


@each_kernel
def test_queries_keys_and_values_may_have_any_strides(kernel):
    fused = torch.randn(50, 3 * 4 * 32).unflatten(1, (3, 4, 32)).unbind(1)  # strides of one product of all three
    by_head = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in fused]
    want = in_double(fused, [17, 33])
    for qkv in (fused, by_head, [fused[0], by_head[1], fused[2].contiguous()]):
        assert float((attend(kernel, qkv, [17, 33]) - want).abs().max()) <= TOLERANCE


@pytest.mark.slow
@each_kernel
@pytest.mark.parametrize("reach", [None, 64])
def test_a_long_window_has_the_same_bits_for_any_strides(kernel, reach):
    lengths = [511, 30, 2100]  # the last is processed in parts
    fused = draw(1, sum(lengths), 3 * 2 * 32)[0][0].unflatten(1, (3, 2, 32)).unbind(1)
    by_head = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in fused]
    bias = torch.randn(2, 2 * max(lengths) + BIAS_PADDING - 1, generator=torch.Generator().manual_seed(1))
    for added in (None, bias):
        got = attend(kernel, fused, lengths, reach=reach, bias=added)
        assert torch.equal(attend(kernel, by_head, lengths, reach=reach, bias=added), got)
        assert float((got - in_double(fused, lengths, reach=reach, bias=added)).abs().max()) <= TOLERANCE


@each_kernel
def test_a_window_has_the_same_bits_alone_and_among_others(kernel):
    lengths = [1, 5, 8, 19, 33, 64, 100]
    qkv = draw(sum(lengths), 2, 32)
    together = attend(kernel, qkv, lengths).split(lengths)
    for at, alone in enumerate(zip(*(x.split(lengths) for x in qkv), strict=True)):
        assert torch.equal(attend(kernel, [x.clone() for x in alone], [lengths[at]]), together[at]), lengths[at]


@pytest.mark.parametrize("dim", [16, 48, 64])
def test_every_instruction_set_gives_the_same_bits(dim):
    lengths = [1, 7, 30, 65]
    qkv = draw(sum(lengths), 2, dim)
    first, *others = [attend(kernel, qkv, lengths) for kernel in BUILT]
    assert all(torch.equal(first, other) for other in others)


@each_kernel
def test_scores_far_apart_neither_overflow_nor_lose_the_largest(kernel):
    q, k, v = draw(40, 2, 32)
    for scale in (30.0, 1e4, 1e15):
        got = attend(kernel, (q * scale, k * scale, v), [40])
        assert torch.isfinite(got).all()
        want = in_double((q * scale, k * scale, v), [40])
        assert float((got - want).abs().max()) <= (1e-3 if scale < 100 else 1e-5), scale


@each_kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [20, 2100])
def test_nan_and_infinity_stay_in_their_window(kernel, bad, tokens):
    lengths, stop = [20, tokens, 20], 20 + tokens
    q, k, v = draw(sum(lengths), 2, 32)
    want = attend(kernel, (q, k, v), lengths)
    for x in (q, k, v):
        broken = x.clone()
        broken[30] = bad
        got = attend(kernel, [broken if y is x else y for y in (q, k, v)], lengths)
        assert torch.equal(got[:20], want[:20])
        assert torch.equal(got[stop:], want[stop:])
        assert not torch.isfinite(got[20:stop]).all()


@each_kernel
@pytest.mark.parametrize("width", [3, 16, 100, 384, 768])
def test_means_of_windows_are_those_of_double(kernel, width):
    lengths = [1, 2, 7, 7, 130]
    hidden = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(0))
    means = kernel.means(hidden, offsets(lengths).long())
    want = torch.stack([window.mean(0) for window in hidden.double().split(lengths)])
    assert float((means - want).abs().max()) <= 1e-6


@each_kernel
def test_a_mean_has_the_same_bits_alone_and_among_others_and_nan_stays_in_its_window(kernel):
    lengths = [3, 9, 40]
    hidden = torch.randn(52, 384, generator=torch.Generator().manual_seed(0))
    alone = kernel.means(hidden[12:], offsets([40]).long())
    hidden[5, 7] = float("nan")
    among = kernel.means(hidden, offsets(lengths).long())
    assert torch.equal(among[2:], alone)
    assert torch.isnan(among).nonzero().tolist() == [[1, 7]]


def test_unsupported_tensors_are_rejected():
    whole = torch.zeros(8, 2, 32)
    assert can_attend(whole, whole, whole)
    for other in (whole.half(), whole.transpose(1, 2), whole[..., :20], whole[:, :1], whole.to("meta")):
        assert not can_attend(other, other, whole)


@each_kernel
def test_a_library_that_was_not_built_is_none(kernel, tmp_path, monkeypatch):
    monkeypatch.setattr("varve.encoder.kernels.cpu_library.__file__", str(tmp_path / "kernel.py"))
    assert CpuLibrary.load(kernel.instructions) is None
    (tmp_path / "compiled").mkdir()
    (tmp_path / f"compiled/{kernel.instructions}.so").write_bytes(b"no library")
    assert CpuLibrary.load(kernel.instructions) is None


@each_kernel
@pytest.mark.parametrize(
    "file", ["attention.c", "bfloat16.h", "layer.c", "linear.c", "product.h", "registers.h", "steps.h", "tiles.h"]
)
def test_a_library_of_older_sources_is_not_loaded(kernel, file, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "pipeline/varve/encoder/kernels/compiled", tmp_path / "compiled")
    monkeypatch.setattr("varve.encoder.kernels.cpu_library.__file__", str(tmp_path / "kernel.py"))
    assert CpuLibrary.load(kernel.instructions) == kernel
    with (tmp_path / "compiled" / file).open("a") as source:
        source.write("/* another signature */\n")
    assert CpuLibrary.load(kernel.instructions) is None


_ENCODE = """
import sys
import numpy as np
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
encode = Encoder(sys.argv[1], {"e": "mean@-1"}, device="cpu")
np.save(sys.argv[2], encode(["a word " * n for n in (1, 3, 3, 40, 90)])["e"])
print(describe(encode)["attention"], describe(encode)["linear"])
"""


# Settings of torch and oneDNN that limit the instruction set.
LIMITS = {
    "torch": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
}


@pytest.mark.slow
@pytest.mark.parametrize("instructions", LIMITS)
def test_a_model_gives_the_same_vectors_on_every_cpu_and_the_manifest_says_which(instructions, minilm, tmp_path):
    if instructions not in {"torch", *(kernel.instructions for kernel in BUILT)}:
        pytest.skip(f"this CPU has no {instructions}")
    command = [sys.executable, "-c", _ENCODE, minilm, str(tmp_path / "got.npy")]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **LIMITS[instructions]}, cwd=ROOT
    )
    assert result.stdout.split() == ["avx512" if instructions == "amx" else instructions, instructions]
    import numpy as np

    encode = Encoder(minilm, {"e": "mean@-1"}, device="cpu")
    want = encode(["a word " * n for n in (1, 3, 3, 40, 90)])["e"]
    assert np.abs(np.load(tmp_path / "got.npy") - want).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "num_heads", "supported"), [("float32", 2, True), ("float16", 2, False), ("float32", 4, False)]
)
def test_torch_computes_attention_in_half_precision_and_of_narrow_heads(dtype, num_heads, supported, tiny):
    model = tiny("bert", hidden_size=32, num_attention_heads=num_heads)
    encoder = Encoder(Model(name=model, max_tokens=64, dtype=dtype), device="cpu")
    library = find_cpu_library()
    assert describe(encoder)["attention"] == (library.vector_instructions if supported and library else "torch")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "no-such-compiler"])
def test_a_wheel_is_complete_with_and_without_a_compiler(compiler, tmp_path):
    tree = tmp_path / "tree"
    for folder in ("pipeline", "jobs", "infra"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CC": compiler})
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    libraries = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    assert libraries == (LIBRARIES if compiler == "cc" else set())
    assert wheel.name.endswith("py3-none-any.whl") == (compiler != "cc")
    assert "varve/encoder/kernels/compiled/attention.c" in zipfile.ZipFile(wheel).namelist()


@each_kernel
@pytest.mark.parametrize("width", [32, 96, 512])
def test_maxima_of_windows_equal_those_of_the_linear_layer(kernel, width):
    lengths, outputs = [1, 33, 2, 300, 1, 64], 3 * kernel.panel_columns
    layer = torch.nn.Linear(width, outputs)
    rows, weight = draw(sum(lengths), 1, width)[0][:, 0], layer.weight.detach().double()
    packed = PackedWeights(layer, kernel, WeightArena(outputs * width, []))
    got = kernel.linear_maximum(rows, offsets(lengths).long(), packed.weights)
    want = torch.stack([(window.double() @ weight.T).amax(0) for window in rows.split(lengths)])
    assert float((got - want).abs().max()) <= TOLERANCE
    alone = kernel.linear_maximum(rows[36:336].contiguous(), offsets([300]).long(), packed.weights)
    assert torch.equal(got[3], alone[0])


@each_kernel
@pytest.mark.parametrize("token", [0, 17, 39])
def test_maxima_keep_nan(kernel, token):
    layer = torch.nn.Linear(32, kernel.panel_columns)
    rows = draw(41, 1, 32)[0][:, 0].contiguous()
    packed = PackedWeights(layer, kernel, WeightArena(layer.weight.numel(), []))
    clean = kernel.linear_maximum(rows, offsets([40, 1]).long(), packed.weights)
    rows[token, 3] = float("nan")
    got = kernel.linear_maximum(rows, offsets([40, 1]).long(), packed.weights)
    assert bool(got[0].isnan().all())
    assert torch.equal(got[1], clean[1])
