"""Memory, file descriptors and threads of a job's processes, by their role.

Knows nothing of jobs. Invariant: a process keeps the role that it was first seen in, except idle workers.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.servers.processes import descendants

# Role → beginnings of the titles of its processes.
_ROLES = {
    "counters": (b"ray::MeteredCounters",),
    "replicas": (b"ray::MapWorker(MapBatches(Replica))", b"ray::_MapWorker", b"ray::Replica"),
    "raylet": (b"raylet",),
    "head": (b"gcs_server",),
}
_IDLE = b"ray::IDLE"
WORKERS = "readers and writers"
FIGURES = ("memory_mb", "descriptors", "threads")
_SETTLED_SHARE = 0.25  # of the samples, before which processes still grow to their size


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes of one role at one moment.

    Attributes:
        time_s: since the start.
        processes: their number.
        memory_mb: the largest resident memory that is not shared with files or other processes.
        descriptors: the largest number of open file descriptors.
        threads: the largest number of threads.
    """

    time_s: float
    processes: int
    memory_mb: float
    descriptors: int
    threads: int


@dataclass
class Samples:
    """Samples of one job's processes.

    Attributes:
        driver: process id of its driver.
        by_role: role → samples in order of time.
    """

    driver: int
    by_role: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    _roles: dict[int, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def measure(self) -> None:
        """Add one sample per role."""
        now, found = time.monotonic() - self._began, defaultdict(list)
        for pid, title in descendants(self.driver).items():
            role = self._role(pid, title)
            if role and (size := _size(pid)):
                found[role].append(size)
        for role, sizes in found.items():
            memory, descriptors, threads = (max(values) for values in zip(*sizes, strict=True))
            self.by_role[role].append(Sample(now, len(sizes), memory, descriptors, threads))

    def _role(self, pid: int, title: bytes) -> str | None:
        if pid == self.driver:
            return "driver"
        if pid in self._roles:
            return self._roles[pid]
        name = title.partition(b"\0")[0].rpartition(b"/")[2] if not title.startswith(b"ray::") else title
        if name.startswith(_IDLE):
            return None  # what it will do is not known yet
        role = next((role for role, starts in _ROLES.items() if name.startswith(starts)), None)
        if (role is None and name.startswith(b"ray::Map")) or name.startswith(b"ray::Read"):
            role = WORKERS
        if role:
            self._roles[pid] = role
        return role

    def growth(self) -> Iterable[tuple[str, str, float, float]]:
        """(role, figure, middle value of the second quarter of time, of the last quarter)."""
        for role, samples in self.by_role.items():
            end_s = samples[-1].time_s
            quarters = [
                [one for one in samples if low * end_s <= one.time_s <= high * end_s]
                for low, high in ((_SETTLED_SHARE, 0.5), (0.75, 1.0))
            ]
            if all(quarters):
                for figure in FIGURES:
                    first, last = (median(getattr(one, figure) for one in quarter) for quarter in quarters)
                    yield role, figure, first, last


def _size(pid: int) -> tuple[float, int, int] | None:
    """(memory in MB, file descriptors, threads) of a process; None if it has ended."""
    try:
        status = _fields(Path(f"/proc/{pid}/status").read_text())
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return int(status["RssAnon"].split()[0]) / 1000, descriptors, int(status["Threads"])
    except (OSError, KeyError):
        return None


def _fields(status: str) -> Mapping[str, str]:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
