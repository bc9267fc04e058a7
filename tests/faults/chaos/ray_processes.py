"""The Ray processes below a process: workers that have work, and raylets."""

from tests.servers.processes import descendants

# Idle workers, and agents: a node dies with its agents, and the head must live.
_NOT_WORKING = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def working() -> list[int]:
    """Ids of this process's Ray workers that have work: replicas, reads, writes, the counters."""
    return [pid for pid, title in descendants().items() if _is_working(title)]


def _is_working(title: bytes) -> bool:
    return title.startswith(b"ray::") and not title.startswith(_NOT_WORKING)


def raylets(driver: int) -> list[int]:
    """Ids of the raylets that a driver has started for itself."""
    return [pid for pid, title in descendants(driver).items() if title.partition(b"\0")[0].endswith(b"/raylet")]
