"""How much memory a probe may take.

The default looks at what the machine has, not at what is free now, so that the same command does the same again.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from varve.errors import JobError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARE = 0.4
_LEAST_BYTES = 64 * 10**6


def parse_bytes(text: str) -> int:
    """4GB, 500M or 2e9 → bytes.

    Raises:
        JobError: it is none of these, or too little to work with.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    try:
        found = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except ValueError:
        found = 0
    if found < _LEAST_BYTES:
        msg = f"--memory: {text!r} is not allowed: expected bytes, such as 4GB; at least {_LEAST_BYTES // 10**6} MB"
        raise JobError(msg)
    return found


def default_bytes(root: Path = Path("/")) -> int:
    """Two fifths of the machine's memory, or of what its container, service or batch job may take.

    Args:
        root: of the file system in which the kernel says so.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    written = [path.read_text().strip() for path in _limit_files(root) if path.exists()]
    limits += [int(limit) for limit in written if limit.isdigit()]
    return int(min(limits) * _SHARE)


def _limit_files(root: Path) -> Iterator[Path]:
    """The limits of this process's control groups, and of those around them."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        top, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            top, name = top / "memory", "memory.limit_in_bytes"
        if controllers in {"", "memory"}:
            group = PurePosixPath(path)
            yield from (top / around.relative_to("/") / name for around in (group, *group.parents))
