"""Compiled code for passes on a CPU: embeddings, attention, linear layers, means of windows.

torch's attention takes one call per run of windows of equal length (infra/decisions/0015), its linear layers write
every result to memory before the next operation reads it (0016), and its mean adds value by value. Knows nothing of
models and packs. Invariants: inputs and outputs are float32 on the CPU, weights float32 or bfloat16 (0034); the bits of
a window or row do not depend on the others; without a library that was built for this machine and from these sources,
callers use torch.
"""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

_STEPS = c_int64 * 8
HEAD_DIM_MULTIPLE = 16  # head dimensions fill whole registers
BIAS_PADDING = 15  # a register may extend this many queries beyond the end of a window


class Weights(ctypes.Structure):
    """`weights` of compiled/steps.h: one linear layer."""

    _fields_ = (
        *((name, c_void_p) for name in ("panels", "bias")),
        *((name, c_int64) for name in ("inputs", "outputs", "depth")),
    )


class Activation(IntEnum):
    """The activations of compiled/steps.h."""

    NONE, GELU, SILU = range(3)


class Norm(ctypes.Structure):
    """`norm` of compiled/steps.h: layer normalisation."""

    _fields_ = (("scale", c_void_p), ("shift", c_void_p), ("epsilon", c_float))


class LayerWeights(ctypes.Structure):
    """`layer_weights` of compiled/layer.c: a whole BERT layer."""

    _fields_ = (
        *((name, POINTER(Weights)) for name in ("query", "key", "value", "output", "first", "second")),
        *((name, POINTER(Norm)) for name in ("after_attention", "after_feed_forward")),
        *((name, c_int64) for name in ("activation", "heads", "dim")),
        ("scaling", c_float),
    )


class Table(ctypes.Structure):
    """`table` of compiled/embeddings.c: the vectors of one embedding; no address if the model lacks it."""

    _fields_ = (("vectors", c_void_p), ("rows", c_int64))


class EmbeddingWeights(ctypes.Structure):
    """`embedding_weights` of compiled/embeddings.c: the embeddings of BERT's family and their norm."""

    _fields_ = (*((name, Table) for name in ("words", "types", "positions")), ("norm", Norm), ("width", c_int64))


_WEIGHTS, _NORM = POINTER(Weights), POINTER(Norm)
_SIGNATURES = {
    "attend": [c_void_p] * 4 + [POINTER(c_int64), c_void_p] + [c_int64] * 5 + [c_void_p, c_int64, c_float],
    "linear": [c_void_p, c_int64, _WEIGHTS, c_int32, c_void_p],
    "linear_maximum": [c_void_p, c_void_p, c_int64, _WEIGHTS, c_void_p],
    "linear_norm": [c_void_p, c_void_p, c_int64, _WEIGHTS, _NORM, c_void_p],
    "feed_forward": [c_void_p, c_void_p, c_int64, _WEIGHTS, c_int32, _WEIGHTS, _WEIGHTS, _NORM, c_void_p],
    "layer": [c_void_p, c_int64, POINTER(LayerWeights), c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p],
    "embeddings": [c_void_p] * 3 + [c_int64, POINTER(EmbeddingWeights), c_void_p],
    "means": [c_void_p, c_void_p, c_int64, c_int64, c_void_p],
}


@dataclass(frozen=True, slots=True)
class CpuLibrary:
    """The compiled code for one instruction set.

    With AMX and float32 weights each number is multiplied as three bfloat16 numbers (compiled/tiles.h), which is as
    exact as float32 (infra/decisions/0017). With bfloat16 weights, inputs of a product are rounded to bfloat16 and its
    sums are float32 (0034). Input tensors are contiguous unless a method says otherwise.
    """

    instructions: str  # of matrix products: "amx", "avx512" or "avx2"
    vector_instructions: str  # of everything else: "avx512" or "avx2"
    panel_columns: int  # columns of a panel of weights
    in_pairs: bool  # whether pairs of inputs are adjacent in a panel, tile by tile, as AMX reads them
    weight_dtype: torch.dtype  # of a panel: float32 or bfloat16
    library: Any = field(repr=False, compare=False)

    @classmethod
    def load(cls, instructions: str, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> Self | None:
        """Load the library for these instructions; None if it is missing, outdated, or cannot run on this CPU.

        Args:
            instructions: "amx", "avx512" or "avx2".
            dtype: of the weights, float32 or bfloat16.
            folder: of the library and its sources; None: those of the package.
        """
        folder = folder or Path(__file__).with_name("compiled")
        file = f"{instructions}.so" if dtype == torch.float32 else f"{instructions}_bfloat16.so"
        try:
            library = ctypes.CDLL(str(folder / file))
        except OSError:
            return None
        library.source_sha256.restype = c_char_p
        if library.source_sha256() != _source_sha256(folder).encode():  # the sources changed after the installation
            return None
        if not library.runs_here():
            return None
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        library.means.restype, library.vector_instructions.restype = None, c_char_p
        library.panel_columns.restype = library.panel_in_pairs.restype = library.embeddings.restype = c_int64
        panels = library.panel_columns(), bool(library.panel_in_pairs())
        return cls(instructions, library.vector_instructions().decode(), *panels, dtype, library)

    def attend(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        cu_seqlens: Tensor,
        longest: int,
        scaling: float | None,
        reach: int | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Softmax attention within each window: (T, heads, D).

        Args:
            q_THD: queries. Queries, keys and values satisfy `can_attend`; they need not be contiguous.
            k_THD: keys.
            v_THD: values.
            cu_seqlens: (W + 1,) int32 first token of each window.
            longest: tokens of the longest window.
            scaling: factor of the scores; 1 / sqrt(D) when None.
            reach: largest distance at which tokens attend to each other; None: unlimited.
            bias: (heads, 2 longest + BIAS_PADDING - 1) added to the scaled scores, indexed by query position - key
                position, from -(longest - 1) on.

        Raises:
            MemoryError: the scores of a window cannot be allocated.
        """
        _, heads, dim = q_THD.shape
        out = _empty(*q_THD.shape)
        pointers = [tensor.data_ptr() for tensor in (q_THD, k_THD, v_THD, out)]
        steps = _STEPS(*(step for tensor in (q_THD, k_THD, v_THD, out) for step in tensor.stride()[:2]))
        scale = dim**-0.5 if scaling is None else scaling
        max_distance = longest if reach is None else reach
        windows = cu_seqlens.data_ptr(), len(cu_seqlens) - 1, longest
        bias_arguments = _bias_arguments(bias, longest)
        failed = self.library.attend(*pointers, steps, *windows, heads, dim, max_distance, *bias_arguments, scale)
        return _checked(failed, out)

    def linear(self, rows: Tensor, weights: Weights, activation: Activation = Activation.NONE) -> Tensor:
        """A linear layer and its activation: (..., inputs) → (..., outputs).

        Raises:
            MemoryError: the buffers of a block of rows cannot be allocated.
        """
        out = _empty(*rows.shape[:-1], weights.outputs)
        count = rows.numel() // weights.inputs
        return _checked(self.library.linear(rows.data_ptr(), count, weights, activation, out.data_ptr()), out)

    def linear_maximum(self, rows: Tensor, cu_seqlens: Tensor, weights: Weights) -> Tensor:
        """The maximum over the rows of each window of a linear layer without its bias: (T, inputs) → (W, outputs).

        NaN is kept. cu_seqlens: (W + 1,) int64; a window has at least one row. Raises as `linear`.
        """
        num_windows = len(cu_seqlens) - 1
        windows = torch.arange(num_windows, dtype=torch.int32).repeat_interleave(cu_seqlens.diff())
        out = _empty(num_windows, weights.outputs).fill_(-torch.inf)
        pointers = rows.data_ptr(), windows.data_ptr(), len(rows), weights, out.data_ptr()
        return _checked(self.library.linear_maximum(*pointers), out)

    def linear_norm(self, rows: Tensor, residual: Tensor, weights: Weights, norm: Norm) -> Tensor:
        """The norm of a linear layer's output plus a residual, in the residual's shape. Raises as `linear`."""
        out, pointers = _empty(*residual.shape), (rows.data_ptr(), residual.data_ptr())
        count = rows.numel() // weights.inputs
        return _checked(self.library.linear_norm(*pointers, count, weights, norm, out.data_ptr()), out)

    def feed_forward(
        self,
        rows: Tensor,
        residual: Tensor,
        first: Weights,
        activation: Activation,
        factors: Weights | None,
        second: Weights,
        norm: Norm | None,
    ) -> Tensor:
        """A feed-forward block: second(activation(first(rows)) * factors(rows)), (..., H) → (..., H).

        Args:
            rows: input.
            residual: added to the output before the norm; ignored without a norm.
            first: layer before the activation.
            activation: of the first layer's outputs.
            factors: layer whose outputs are the factors of a gated block; None: no factors.
            second: layer back to H outputs.
            norm: normalises the sum of output and residual; None: returns the output.

        Raises:
            MemoryError: see `linear`.
        """
        out, pointers = _empty(*rows.shape), (rows.data_ptr(), residual.data_ptr())
        count, steps = rows.numel() // first.inputs, (first, activation, factors, second, norm)
        return _checked(self.library.feed_forward(*pointers, count, *steps, out.data_ptr()), out)

    def layer(
        self, rows: Tensor, weights: LayerWeights, cu_seqlens: Tensor, longest: int, bias: Tensor | None = None
    ) -> Tensor:
        """A whole layer over one packed row (1, T, H), with windows and bias as in `attend`. Raises as `linear`."""
        out, windows = _empty(*rows.shape), (cu_seqlens.data_ptr(), len(cu_seqlens) - 1, longest)
        arguments = rows.shape[1], weights, *windows, *_bias_arguments(bias, longest)
        return _checked(self.library.layer(rows.data_ptr(), *arguments, out.data_ptr()), out)

    def embeddings(self, ids: Tensor, types: Tensor | None, positions: Tensor, weights: EmbeddingWeights) -> Tensor:
        """norm(word + type + position) of each token: int64 (..., T) → (..., T, H); types None: all are 0.

        Raises:
            IndexError: a table has no vector for one of the ids.
        """
        out = _empty(*ids.shape, weights.width)
        pointers = ids.data_ptr(), None if types is None else types.data_ptr(), positions.data_ptr()
        failed = self.library.embeddings(*pointers, ids.numel(), weights, out.data_ptr())
        if failed >= 0:
            token = int(ids.flatten()[failed]), int(positions.flatten()[failed])
            msg = f"the embeddings have no vector for the token id {token[0]} at position {token[1]}, or for its type"
            raise IndexError(msg)
        return out

    def means(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The mean of the token vectors of each window: (W, H). cu_seqlens: (W + 1,) int64."""
        windows, width = len(cu_seqlens) - 1, hidden_TH.shape[1]
        out = _empty(windows, width)
        self.library.means(hidden_TH.data_ptr(), cu_seqlens.data_ptr(), windows, width, out.data_ptr())
        return out


def _empty(*shape: int) -> Tensor:
    """An output buffer: float32 on the CPU, as the compiled code expects, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _bias_arguments(bias: Tensor | None, longest: int) -> tuple[int | None, int]:
    """Address, and elements from a head to the next."""
    if bias is None:
        return None, 0
    assert bias.is_contiguous()
    assert bias.shape[1] >= 2 * longest + BIAS_PADDING - 1
    return bias.data_ptr(), bias.shape[1]


def _checked(failed: int, out: Tensor) -> Tensor:
    if failed:
        shape = " x ".join(map(str, out.shape))
        msg = f"cannot allocate memory for a step of the forward pass with an output of {shape} floats"
        raise MemoryError(msg)
    return out


def _source_sha256(folder: Path) -> str:
    """Hash of the C sources, as infra/build.py computes it."""
    return sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.[ch]")))).hexdigest()


def can_attend(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> bool:
    """Whether `CpuLibrary.attend` can read these queries, keys and values."""
    return q_THD.shape[2] % HEAD_DIM_MULTIPLE == 0 and all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(2) == 1 and x.shape == q_THD.shape
        for x in (q_THD, k_THD, v_THD)
    )


def find_cpu_library(dtype: torch.dtype = torch.float32) -> CpuLibrary | None:
    """The fastest library with weights of this dtype.

    It is within the limits of ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA, which also limit torch.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return _load(capability.lower(), dtype)
    if dtype == torch.bfloat16 and not _may_use("AMX", "BF16", "FP16"):
        return None
    return (_load("amx", dtype) if _may_use("AMX") else None) or _load("avx512", dtype)


def supports_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers, within the same limits; True on other processors than x86-64."""
    cpu = torch.cpu.get_capabilities()
    if cpu["architecture"] != "x86_64":
        return True
    is_allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _may_use("AMX", "BF16", "FP16")
    return bool(cpu["avx512_bf16"]) and is_allowed


def _may_use(*extensions: str) -> bool:
    """Whether the instruction set that limits oneDNN is unlimited or has one of these extensions in its name."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit in {"", "ALL", "DEFAULT"} or any(extension in limit for extension in extensions)


_load = cache(CpuLibrary.load)
