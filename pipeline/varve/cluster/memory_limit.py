"""The memory limit of a probe or an index: parses `--memory` and derives the default.

The default depends on the memory that the machine has, not on what is free at the moment, so that the same command
gives the same results.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from varve.errors import JobError
from varve.monitoring.progress_line import data_size

_PREFIXES = ("", "K", "M", "G", "T")
_SHARE = 0.4
_MIN_BYTES = 64 * 10**6


def parse_bytes(text: str, least_bytes: int = _MIN_BYTES) -> int:
    """4GB (10^9), 4GiB (2^30), 500M or 2e9 → bytes.

    Raises:
        JobError: the text is not such a size, or the size is below `least_bytes`.
    """
    number, unit = r"(?:\d+\.?\d*|\.\d+)(?:e\d{1,2})?", r"(?:([KMGT])(i?))?B?"
    match = re.fullmatch(rf"({number})\s*{unit}", text.strip(), re.IGNORECASE | re.ASCII)
    num_bytes = int(float(match[1]) * _factor(match[2] or "", binary=bool(match[3]))) if match else 0
    if num_bytes < least_bytes:
        msg = (
            f"--memory: {text!r} is not allowed: expected bytes, or a size such as 4GB or 4GiB, at least "
            f"{data_size(least_bytes)}"
        )
        raise JobError(msg)
    return num_bytes


def _factor(prefix: str, *, binary: bool) -> int:
    """Bytes of a unit: 10^9 for G, 2^30 for Gi."""
    return (1024 if binary else 1000) ** _PREFIXES.index(prefix.upper())


def default_bytes(root: Path = Path("/"), share: float = _SHARE) -> int:
    """A share of the machine's memory, or of the limit of its container, service or batch job if that is lower.

    Args:
        root: of the file system with /proc and /sys.
        share: by default two fifths.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    contents = [path.read_text().strip() for path in _limit_files(root) if path.exists()]
    limits += [int(content) for content in contents if content.isdigit()]  # no limit is written as "max"
    return int(min(limits) * share)


def _limit_files(root: Path) -> Iterator[Path]:
    """The memory limits of this process's control groups and of all their parents, of cgroup v1 and v2."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        top, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            top, name = top / "memory", "memory.limit_in_bytes"
        if controllers in {"", "memory"}:
            group = PurePosixPath(path)
            yield from (top / parent.relative_to("/") / name for parent in (group, *group.parents))
