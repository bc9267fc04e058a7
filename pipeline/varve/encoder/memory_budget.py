"""The device's memory: how large a pack it takes, and how a CPU's is kept for the next pack.

Packed attention's memory grows with the tokens of a pack and with nothing else, so one measurement gives its slope.
"""

import ctypes
import sys

import numpy as np
import torch

from varve.encoder.model.forward import Forward
from varve.encoder.packing import Pack

_PROBE_TOKENS = 8192
_SHARE = 0.8  # of the free memory: allocators round up, and results wait to be read

# From glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGE_BYTES = 32 << 20  # glibc refuses a larger threshold
_NEVER_BYTES = (1 << 31) - 1
_GROW_BYTES = 64 << 20


def most_tokens(forward: Forward, device: torch.device, max_tokens: int) -> int | None:
    """Tokens of the largest pack that fits into a GPU's free memory; None on a CPU, whose packs are small."""
    if device.type != "cuda":
        return None
    windows = np.zeros((max(1, _PROBE_TOKENS // max_tokens), max_tokens), np.int32)
    probe = Pack.of_windows(list(windows))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before_bytes = torch.cuda.memory_allocated(device)
    forward(probe)
    peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return max(max_tokens, int(_SHARE * free_bytes / peak_bytes * probe.num_tokens))


def keep_freed_memory() -> None:
    """Let glibc keep what a pass frees, instead of giving it back and faulting it in again for the next operation.

    Activations of a few MB lie at the threshold where glibc maps each one anew: 130,000 page faults for 27,000 tokens
    of MiniLM, and up to 4 % of the time. A GPU's results are gathered in arrays as large. For the whole process; no-op
    where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)
        mallopt(_M_TOP_PAD, _GROW_BYTES)
