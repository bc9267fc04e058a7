"""The CPU of this machine and its instructions that matter for matrix products."""

import os
import platform
from pathlib import Path

# As /proc/cpuinfo names them: float32, then int8, then bfloat16 and AMX.
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")


def describe_cpu() -> str:
    """Such as "2 cores of AMD EPYC (avx2)"; without instructions where /proc/cpuinfo does not exist."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    instructions = ", ".join(flag for flag in _INSTRUCTIONS if flag in flags)
    return f"{len(os.sched_getaffinity(0))} cores of {name}" + (f" ({instructions})" if instructions else "")
