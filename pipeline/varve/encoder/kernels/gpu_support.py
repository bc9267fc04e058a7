"""Detects what the GPU can run in addition to torch's own operations.

Triton comes with torch's CUDA builds. It compiles a kernel at its first launch and needs a C compiler for that; without
one, callers use torch and get the same numbers.
"""

from functools import cache
from types import ModuleType

import torch


@cache
def find_triton_kernels() -> ModuleType | None:
    """The module triton_kernels.py after a test launch; None if it cannot run."""
    if not torch.cuda.is_available():
        return None
    try:
        from varve.encoder.kernels import triton_kernels  # noqa: PLC0415 (Triton may be missing)

        offsets = torch.tensor([0, 1], device="cuda")
        triton_kernels.mean_of_windows(torch.zeros(1, 16, device="cuda"), offsets)
    except Exception:  # noqa: BLE001 (no Triton, no compiler, an unsupported GPU)
        return None
    return triton_kernels


@cache
def can_attend_packed() -> bool:
    """Whether the GPU can run attention over cu_seqlens (tiles or torch's flash attention): Ampere or newer."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
