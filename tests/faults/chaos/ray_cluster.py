"""A Ray cluster of two nodes on this machine: a head, on which drivers run, and a second node, which dies.

A cluster has the environment variables of one store. It lives until a scenario needs another one, or its head is dead.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MARK = "CHAOS_CLUSTER"  # environment variable of the cluster's processes
_NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 << 20}


class RayCluster:
    """The cluster of the present scenario, if it has one."""

    def __init__(self) -> None:
        self._cluster: Any = None
        self._second: Any = None
        self._environment: dict[str, str] = {}

    def use(self, environment: Mapping[str, str]) -> str:
        """Start a cluster with these variables unless it runs; returns its address."""
        if not self._fits(environment):
            self.end()
            self._start(environment)
        return self._cluster.address

    def _fits(self, environment: Mapping[str, str]) -> bool:
        if self._cluster is None or self._environment != environment:
            return False
        return not self._cluster.head_node.dead_processes()

    def _start(self, environment: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._environment = dict(environment)
        with self._in_environment():
            self._cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
            self._second = self._cluster.add_node(**_NODE)

    @contextmanager
    def _in_environment(self) -> Iterator[None]:
        own, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
        os.environ.update({**self._environment, MARK: "1"})
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's waits for the nodes
            os.environ.clear()
            os.environ.update(own)

    def kill_second(self) -> None:
        """SIGKILL to all processes of the second node; another one takes its place."""
        with self._in_environment():
            self._cluster.remove_node(self._second, allow_graceful=False)
            self._second = self._cluster.add_node(**_NODE)

    def second_raylet(self) -> int:
        """Process id."""
        return self._second.all_processes["raylet"][0].process.pid

    def end(self) -> None:
        """End all nodes."""
        if self._cluster is not None:
            self._cluster.shutdown()
            self._cluster = None
