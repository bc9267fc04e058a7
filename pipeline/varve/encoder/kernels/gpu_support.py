"""The code for GPUs beside torch's own, where it can be compiled.

Triton comes with torch's CUDA builds and compiles a kernel when it is first launched; for the launch itself it needs a
C compiler. Whatever is lacking, torch has another way to the same numbers.
"""

from functools import cache
from types import ModuleType

import torch


@cache
def find_triton_code() -> ModuleType | None:
    """triton_code.py, tried out; None where it can't run."""
    if not torch.cuda.is_available():
        return None
    try:
        from varve.encoder.kernels import triton_kernels  # noqa: PLC0415 (Triton is not everywhere)

        offsets = torch.tensor([0, 1], device="cuda")
        triton_kernels.mean_of_windows(torch.zeros(1, 16, device="cuda"), offsets)
    except Exception:  # noqa: BLE001 (no Triton, no compiler, a GPU that it does not know)
        return None
    return triton_kernels


@cache
def attends_in_tiles() -> bool:
    """Whether the GPU attends over offsets, by tiles or by torch's flash attention: from Ampere on."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
