"""The Triton kernels against torch in float64; needs a GPU."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from varve.encoder.kernels.attention_tiles import Tiles, make_tiles
from varve.encoder.kernels.gpu_support import find_triton_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# One token, windows that do not fill a tile, windows that fill it exactly, and tiles of every size.
LENGTHS = [[1], [1] * 70, [3, 9, 9, 20, 31], [16] * 13 + [32], [64] * 3, [2, 7, 17, 33, 97], [40, 128, 129, 160, 600]]
HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def code():
    kernels = find_triton_kernels()
    assert kernels is not None
    return kernels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def offsets(lengths):
    return torch.tensor([0, *lengths], device="cuda").cumsum(0)


def tiles_of(lengths):
    table, groups = make_tiles(np.array(lengths))
    return Tiles(torch.from_numpy(table).cuda(), groups)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("width", [384, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_means_of_windows_are_those_of_float64(lengths, width, dtype, code):
    cu_seqlens = offsets(lengths)
    hidden = torch.randn(sum(lengths), width, device="cuda").to(dtype)
    want = torch.segment_reduce(hidden.double(), "mean", offsets=cu_seqlens)
    assert float((code.mean_of_windows(hidden, cu_seqlens) - want).abs().max()) <= 1e-6


@pytest.mark.parametrize("tokens", [1, 3, 257])
@pytest.mark.parametrize("width", [32, 768, 1000])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_norms_of_sums_are_those_of_float64(tokens, width, dtype, code):
    norm = nn.LayerNorm(width, eps=1e-12).cuda()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    norm.to(dtype)
    hidden, residual = (torch.randn(tokens, width, device="cuda").to(dtype) for _ in range(2))
    weights = norm.weight.double(), norm.bias.double()
    want = nn.functional.layer_norm(hidden.double() + residual.double(), (width,), *weights, norm.eps)
    assert relative(code.norm_of_sum(hidden, residual, norm), want) <= HALF.get(dtype, 1e-6)


@pytest.mark.parametrize("reach", [0, 5, 64])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("dtype", HALF)
def test_attention_within_windows_is_that_of_float64(lengths, head_dim, dtype, reach, code):
    q, k, v = torch.randn(sum(lengths), 3, 2, head_dim, device="cuda").to(dtype).unbind(1)
    window = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).cuda()
    position = torch.arange(len(window), device="cuda")
    seen = window[:, None] == window
    if reach:
        seen &= (position[:, None] - position).abs() <= reach
    wide = (each.double().transpose(0, 1) for each in (q, k, v))
    want = scaled_dot_product_attention(*wide, attn_mask=seen, scale=0.3).transpose(0, 1)
    assert relative(code.attend_windows(q, k, v, tiles_of(lengths), 0.3, reach), want) <= HALF[dtype]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_nan_and_infinity_stay_in_their_window(bad, part, code):
    tiles = tiles_of([20, 20, 20, 30])
    qkv = torch.randn(90, 3, 2, 32, device="cuda").half()
    want = code.attend_windows(*qkv.unbind(1), tiles, 0.2, 0)
    qkv[45, part, 1, 3] = bad
    got = code.attend_windows(*qkv.unbind(1), tiles, 0.2, 0)
    assert torch.equal(got[:40], want[:40])
    assert torch.equal(got[60:], want[60:])
    assert not torch.isfinite(got[40:60, 1]).all()


def test_a_window_has_the_same_bits_alone_and_with_others(code):
    lengths = [5, 16, 17, 33, 64, 65, 100, 129, 300]
    q, k, v = torch.randn(sum(lengths), 3, 2, 64, device="cuda").half().unbind(1)
    together = code.attend_windows(q, k, v, tiles_of(lengths), 0.2, 0)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        assert torch.equal(code.attend_windows(q[part], k[part], v[part], tiles_of([length]), 0.2, 0), together[part])
        start += length
