"""A Ray cluster of two nodes on this machine: a head, on which drivers run, and a second node, which dies.

A cluster has the environment variables of one store. It lives until a scenario needs another one, or its head is dead.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tests.servers.processes import descendants

MARK = "CHAOS_CLUSTER"  # environment variable of the cluster's processes
_NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 << 20}
_STARTS = 3  # on a busy machine, a node may not answer in Ray's time


class RayCluster:
    """The cluster of the present scenario, if it has one.

    Args:
        folder: of its sessions; with a short name, since they have sockets.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster: Any = None
        self._second: Any = None
        self._environment: dict[str, str] = {}

    def use(self, environment: Mapping[str, str]) -> str:
        """Start a cluster with these variables unless it runs; returns its address."""
        for start in range(_STARTS):
            if self._fits(environment):
                break
            self.end()
            with suppress(Exception) if start + 1 < _STARTS else nullcontext():
                self._start(environment)
        return self._cluster.address

    def _fits(self, environment: Mapping[str, str]) -> bool:
        if self._cluster is None or self._second is None or self._environment != environment:
            return False
        return not self._cluster.head_node.dead_processes()

    def _start(self, environment: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._environment = dict(environment)
        with self._in_environment():
            self._cluster = Cluster()
            self._cluster.add_node(**_NODE, include_dashboard=False)
            self._second = self._cluster.add_node(**_NODE)

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        own, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
        own_ray = {"RAY_TMPDIR": str(self._folder), "RAY_worker_niceness": "0", MARK: "1"}
        os.environ.update(self._environment | own_ray)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's waits for the nodes
            os.environ.clear()
            os.environ.update(own)

    def kill_second(self) -> bool:
        """SIGKILL to all processes of the second node; another one takes its place, unless it does not start."""
        killed, self._second = self._second, None
        if killed is None:
            return False
        agents_and_workers = descendants(_raylet(killed))  # they would notice only later
        with self._in_environment(), suppress(Exception):
            self._cluster.remove_node(killed, allow_graceful=False)
            _kill(agents_and_workers)
            self._second = self._cluster.add_node(**_NODE)
        return True

    def second_raylet(self) -> list[int]:
        """Its process id, if the node lives."""
        return [_raylet(self._second)] if self._second else []

    def end(self) -> None:
        """End all nodes, also those that did not start in time and that Ray has forgotten."""
        if self._cluster is not None:
            self._cluster.shutdown()
            self._cluster = self._second = None
            _kill([pid for pid, title in descendants().items() if os.fsencode(self._folder) in title])


def _raylet(node: Any) -> int:
    """The process id of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
