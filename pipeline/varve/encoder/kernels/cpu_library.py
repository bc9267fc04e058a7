"""Compiled code for what a float32 pass on a CPU consists of: attention, linear layers, and the means of windows.

torch's own attention takes one call for each run of windows of equal length (infra/decisions/0015), its linear layers
bring every result to memory before the next step takes it up (0016), and its means add number by number. Knows nothing
of models and packs. Invariants: float32 on the CPU alone; a window's and a row's bits do not depend on those beside
them; where nothing was built for the machine, or from another source, there is no kernel, and torch runs.
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
DIM = 16  # of which head dimensions are multiples: whole registers
BEYOND = 15  # queries that a register may have behind the last of a window


class Weights(ctypes.Structure):
    """`weights` of compiled/linear.c: addresses, and the numbers of inputs, outputs, and inputs in a panel."""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("depth", c_int64),
    )


class Activation(IntEnum):
    """What becomes of a layer's outputs, as compiled/linear.c numbers it."""

    NONE, GELU, SILU = range(3)


class Norm(ctypes.Structure):
    """`norm` of compiled/linear.c: layer normalisation."""

    _fields_ = (("scale", c_void_p), ("shift", c_void_p), ("epsilon", c_float))


class Parts(ctypes.Structure):
    """`parts` of compiled/layer.c: what a whole layer is made of."""

    _fields_ = (
        *((name, POINTER(Weights)) for name in ("query", "key", "value", "output", "first", "second")),
        *((name, POINTER(Norm)) for name in ("after_attention", "after_feed_forward")),
        *((name, c_int64) for name in ("become", "heads", "dim")),
        ("scaling", c_float),
    )


_SIGNATURES = {
    "attend": [c_void_p] * 4 + [POINTER(c_int64), c_void_p] + [c_int64] * 5 + [c_void_p, c_int64, c_float],
    "linear": [c_void_p, c_int64, POINTER(Weights), c_int32, c_void_p],
    "linear_norm": [c_void_p, c_void_p, c_int64, POINTER(Weights), POINTER(Norm), c_void_p],
    "feed_forward": [c_void_p] * 2
    + [c_int64, POINTER(Weights), c_int32]
    + [POINTER(Weights)] * 2
    + [POINTER(Norm), c_void_p],
    "layer": [c_void_p, c_int64, POINTER(Parts), c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p],
    "means": [c_void_p, c_void_p, c_int64, c_int64, c_void_p],
}


@dataclass(frozen=True, slots=True)
class CpuLibrary:
    """The compiled code for one instruction set.

    With AMX a product is that of three bfloat16 numbers for each float32 (compiled/tiles.h), as exact as one in float32
    (infra/decisions/0017); attention and all else is computed in registers of floats.
    """

    instructions: str  # of its products: "amx", "avx512" or "avx2"
    library: Any = field(repr=False, compare=False)

    @classmethod
    def load(cls, instructions: str) -> Self | None:
        """The kernel built for these instructions from the source beside it; None if there is none that runs here."""
        folder = Path(__file__).with_name("compiled")
        try:
            library = ctypes.CDLL(str(folder / f"{instructions}.so"))
        except OSError:
            return None
        library.source_sha256.restype = library.registers.restype = c_char_p
        if library.source_sha256() != source_sha256(folder).encode():  # a checkout that went on, not installed anew
            return None
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        library.means.restype = None
        library.panel_columns.restype = library.panel_in_pairs.restype = c_int64
        return cls(instructions, library) if library.runs_here() else None

    @property
    def registers(self) -> str:
        """The instructions of attention and all but products: "avx512" or "avx2"."""
        return self.library.registers().decode()

    @property
    def columns(self) -> int:
        """Columns of a panel of weights."""
        return self.library.panel_columns()

    @property
    def in_pairs(self) -> bool:
        """Whether each two inputs of a column lie side by side in a panel, tile by tile, as AMX takes them."""
        return bool(self.library.panel_in_pairs())

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
            q_THD: queries that `takes` accepts; keys and values alike.
            k_THD: see q_THD.
            v_THD: see q_THD.
            cu_seqlens: (W + 1,) int32 where each window starts.
            longest: tokens of the longest window.
            scaling: of the scores; 1 / sqrt(D) when None.
            reach: tokens attend to those at most so far away, and no others are looked at; to all when None.
            bias: (heads, 2 longest + BEYOND - 1) what is added to a scaled score, by how far the query stands behind
                the key, from -(longest - 1) on.

        Raises:
            MemoryError: there is none for one window's scores.
        """
        _, heads, dim = q_THD.shape
        out = _room(*q_THD.shape)
        pointers = [tensor.data_ptr() for tensor in (q_THD, k_THD, v_THD, out)]
        steps = _STEPS(*(step for tensor in (q_THD, k_THD, v_THD, out) for step in tensor.stride()[:2]))
        scale = dim**-0.5 if scaling is None else scaling
        far = longest if reach is None else reach
        windows = cu_seqlens.data_ptr(), len(cu_seqlens) - 1, longest
        failed = self.library.attend(*pointers, steps, *windows, heads, dim, far, *_bias(bias, longest), scale)
        return _unless(failed, out)

    def linear(self, rows: Tensor, weights: Weights, become: Activation = Activation.NONE) -> Tensor:
        """A linear layer and its activation: (..., outputs) of (..., inputs).

        As in all of these, tensors are contiguous, and each row is as long as the weights say.

        Raises:
            MemoryError: there is none for a block of rows.
        """
        out = _room(*rows.shape[:-1], weights.outputs)
        count = rows.numel() // weights.inputs
        return _unless(self.library.linear(rows.data_ptr(), count, weights, become, out.data_ptr()), out)

    def linear_norm(self, rows: Tensor, residual: Tensor, weights: Weights, norm: Norm) -> Tensor:
        """The norm of a linear layer's output plus a residual, as large as the residual. See `linear`."""
        out, pointers = _room(*residual.shape), (rows.data_ptr(), residual.data_ptr())
        count = rows.numel() // weights.inputs
        return _unless(self.library.linear_norm(*pointers, count, weights, norm, out.data_ptr()), out)

    def feed_forward(
        self,
        rows: Tensor,
        residual: Tensor,
        first: Weights,
        become: Activation,
        factors: Weights | None,
        second: Weights,
        norm: Norm | None,
    ) -> Tensor:
        """Two linear layers with an activation between them, back to the rows' width. See `linear`.

        Args:
            rows: what goes in.
            residual: what the output is added to before the norm; nothing looks at it where there is none.
            first: the layer whose outputs are activated.
            become: their activation.
            factors: the layer whose outputs they are then multiplied with, in a gated block.
            second: the layer that these go through.
            norm: of the sum with the residual.
        """
        out, pointers = _room(*rows.shape), (rows.data_ptr(), residual.data_ptr())
        count, steps = rows.numel() // first.inputs, (first, become, factors, second, norm)
        return _unless(self.library.feed_forward(*pointers, count, *steps, out.data_ptr()), out)

    def layer(self, rows: Tensor, parts: Parts, cu_seqlens: Tensor, longest: int, bias: Tensor | None = None) -> Tensor:
        """A whole layer over one packed row (1, T, H). See `linear`, and `attend` for windows and bias."""
        out, windows = _room(*rows.shape), (cu_seqlens.data_ptr(), len(cu_seqlens) - 1, longest)
        failed = self.library.layer(
            rows.data_ptr(), rows.shape[1], parts, *windows, *_bias(bias, longest), out.data_ptr()
        )
        return _unless(failed, out)

    def means(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The mean of the token vectors of each window: (W, H). hidden_TH is contiguous; cu_seqlens: (W + 1,) int64."""
        windows, width = len(cu_seqlens) - 1, hidden_TH.shape[1]
        out = _room(windows, width)
        self.library.means(hidden_TH.data_ptr(), cu_seqlens.data_ptr(), windows, width, out.data_ptr())
        return out


def _room(*shape: int) -> Tensor:
    """For what the compiled code writes: torch's defaults are the process's to change, that code's are not."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _bias(bias: Tensor | None, longest: int) -> tuple[int | None, int]:
    """Its address and the step from a head to the next."""
    if bias is None:
        return None, 0
    assert bias.is_contiguous()
    assert bias.shape[1] >= 2 * longest + BEYOND - 1
    return bias.data_ptr(), bias.shape[1]


def _unless(failed: int, out: Tensor) -> Tensor:
    if failed:
        msg = f"no memory for a step of the pass that gives {' x '.join(map(str, out.shape))} numbers"
        raise MemoryError(msg)
    return out


def source_sha256(folder: Path) -> str:
    """Of what is compiled: all of the folder's C, in the order of the names."""
    return sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.[ch]")))).hexdigest()


def takes(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> bool:
    """Whether the kernel can read these queries, keys and values."""
    return q_THD.shape[2] % DIM == 0 and all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(2) == 1 and x.shape == q_THD.shape
        for x in (q_THD, k_THD, v_THD)
    )


def find_cpu_library() -> CpuLibrary | None:
    """The fastest kernel here for what torch may use: ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA bound both."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return _load(capability.lower())
    return (_load("amx") if _may_use_tiles() else None) or _load("avx512")


def _may_use_tiles() -> bool:
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return most in {"", "ALL", "DEFAULT"} or "AMX" in most


_load = cache(CpuLibrary.load)
