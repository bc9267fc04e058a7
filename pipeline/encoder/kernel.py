"""Attention of all windows of a packed row in one call of compiled code (attention.c), on CPUs with AVX-512 or AVX2.

torch's own kernel takes one call for each run of windows of equal length, and reaches a sixth to six tenths of what a
core can do at the head dimensions of small encoders (infra/decisions/0015). Knows nothing of models and packs.
Invariants: float32 on the CPU alone; a window's bits do not depend on the windows beside it; where nothing was built
for the machine, or from another source, there is no kernel, and torch's own attention runs.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

_STEPS = c_int64 * 8
_DIM = 16  # of which head dimensions are multiples: whole registers


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled code for one instruction set."""

    instructions: str  # "avx512" or "avx2"
    library: Any = field(repr=False, compare=False)

    @classmethod
    def load(cls, instructions: str) -> Self | None:
        """The kernel built for these instructions from the source beside it; None if there is none that runs here."""
        folder = Path(__file__).parent
        try:
            library = ctypes.CDLL(str(folder / f"attention_{instructions}.so"))
            source = sha256((folder / "attention.c").read_bytes()).hexdigest()
        except OSError:
            return None
        library.source_sha256.restype = c_char_p
        if library.source_sha256() != source.encode():  # a checkout that went on, and was not installed anew
            return None
        library.attend.argtypes = [c_void_p] * 4 + [POINTER(c_int64), c_void_p] + [c_int64] * 5 + [c_float]
        library.attend.restype = library.runs_here.restype = c_int32
        return cls(instructions, library) if library.runs_here() else None

    def attend(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        cu: Tensor,
        longest: int,
        scaling: float | None,
        reach: int | None = None,
    ) -> Tensor:
        """Softmax attention within each window: (T, heads, D).

        Args:
            q_THD: queries that `takes` accepts; keys and values alike.
            k_THD: see q_THD.
            v_THD: see q_THD.
            cu: (W + 1,) int32 where each window starts.
            longest: tokens of the longest window.
            scaling: of the scores; 1 / sqrt(D) when None.
            reach: tokens attend to those at most so far away, and no others are looked at; to all when None.

        Raises:
            MemoryError: there is none for one window's scores.
        """
        _, heads, dim = q_THD.shape
        out = torch.empty(q_THD.shape)
        pointers = [tensor.data_ptr() for tensor in (q_THD, k_THD, v_THD, out)]
        steps = _STEPS(*(step for tensor in (q_THD, k_THD, v_THD, out) for step in tensor.stride()[:2]))
        scale = dim**-0.5 if scaling is None else scaling
        far = longest if reach is None else reach
        if self.library.attend(*pointers, steps, cu.data_ptr(), len(cu) - 1, longest, heads, dim, far, scale):
            msg = f"no memory for the attention of a window of {longest} tokens"
            raise MemoryError(msg)
        return out


def takes(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> bool:
    """Whether the kernel can read these queries, keys and values."""
    return q_THD.shape[2] % _DIM == 0 and all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(2) == 1 and x.shape == q_THD.shape
        for x in (q_THD, k_THD, v_THD)
    )


def find_kernel() -> Kernel | None:
    """The kernel for the instructions that torch itself uses on this machine; ATEN_CPU_CAPABILITY bounds both."""
    capability = torch.backends.cpu.get_cpu_capability()
    return _load("avx512" if capability.startswith("AVX512") else capability.lower())


_load = cache(Kernel.load)
