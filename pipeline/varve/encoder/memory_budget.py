"""The device's memory: the largest pack that fits on a GPU, and glibc settings for a CPU.

The memory of packed attention is linear in the tokens of a pack, so one measurement gives its slope.
"""

import ctypes
import sys

import numpy as np
import torch

from varve.encoder.model.forward import Forward
from varve.encoder.packing import Pack

_PROBE_TOKENS = 8192
_USABLE_SHARE = 0.8  # of the free memory: allocators round up, and results wait to be copied to the host

# Options of mallopt, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLD_BYTES = 32 << 20  # glibc's maximum
_TRIM_THRESHOLD_BYTES = (1 << 31) - 1  # never trim
_TOP_PAD_BYTES = 64 << 20


def measure_max_pack_tokens(forward: Forward, device: torch.device, max_tokens: int) -> int | None:
    """Tokens of the largest pack that fits into a GPU's free memory; None on a CPU, where packs are small."""
    if device.type != "cuda":
        return None
    windows = np.zeros((max(1, _PROBE_TOKENS // max_tokens), max_tokens), np.int32)
    probe = Pack.of_windows(list(windows))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    allocated_bytes = torch.cuda.memory_allocated(device)
    forward(probe)
    pass_bytes = torch.cuda.max_memory_allocated(device) - allocated_bytes
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return max(max_tokens, int(_USABLE_SHARE * free_bytes / pass_bytes * probe.num_tokens))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in the process instead of returning it to the system.

    Activations of a few MB are near the size above which glibc maps each allocation anew: 130,000 page faults for
    27,000 tokens of MiniLM, and up to 4 % of the time. Results of a GPU pass are as large. Applies to the whole
    process; does nothing with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
        mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
