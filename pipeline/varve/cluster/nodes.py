"""The nodes of a cluster: their resources, and whether a run can start on them.

Knows nothing of parts or models. Invariant: values of environment variables stay on their nodes; only names travel.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varve.errors import RunError

logger = logging.getLogger(__name__)

# How long a run waits for resources that another program holds.
WAIT_S = 60.0
# How long it waits for nodes that an autoscaler starts, which takes a cloud minutes.
NODES_WAIT_S = 900.0
_POLL_S = 0.5
_ACCELERATOR_PREFIX = "accelerator_type:"
_MAX_SHOWN = 5
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster, as Ray counts it."""

    id: str
    address: str
    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None  # type of its GPUs, if Ray knows it
    memory_bytes: float = 0.0
    object_store_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The live nodes, and the sum of their free resources."""

    nodes: tuple[Node, ...]
    free_cpus: float
    free_gpus: float

    @property
    def cpus(self) -> float:
        """Cores of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


def read_cluster() -> Cluster:
    """The present state of the cluster that Ray is connected to."""
    free = ray.available_resources()
    nodes = [
        _node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
    ]
    return Cluster(tuple(nodes), free.get("CPU", 0.0), free.get("GPU", 0.0))


def _node(node_id: str, address: str, resources: dict[str, float]) -> Node:
    types = [name.removeprefix(_ACCELERATOR_PREFIX) for name in resources if name.startswith(_ACCELERATOR_PREFIX)]
    return Node(
        id=node_id,
        address=address,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerator=types[0] if types else None,
        memory_bytes=resources.get("memory", 0.0),
        object_store_bytes=resources.get("object_store_memory", 0.0),
    )


def this_machine() -> Cluster:
    """This machine as a local Ray would count it."""
    import torch  # noqa: PLC0415 (slow, and processes that read or write do not need it)

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    return Cluster((Node("", "this machine", cpus, gpus),), cpus, gpus)


def wait_until_free(cpus: float, gpus: float, wait_s: float = WAIT_S) -> Cluster:
    """Wait until this many CPUs and GPUs are free; returns the cluster.

    Raises:
        RunError: they are not free within `wait_s`, or within `NODES_WAIT_S` if the cluster has too few nodes yet.
    """
    started, is_logged = time.monotonic(), False
    while (cluster := read_cluster()).free_cpus < cpus or cluster.free_gpus < gpus:
        if cluster.free_cpus < cpus:
            kind, needed, free, total = "CPUs", cpus, cluster.free_cpus, cluster.cpus
        else:
            kind, needed, free, total = "GPUs", gpus, cluster.free_gpus, cluster.gpus
        if time.monotonic() - started > (wait_s if total >= needed else max(wait_s, NODES_WAIT_S)):
            msg = (
                f"a run needs at least {needed:.2g} free {kind}, and {free:.1f} of {total:.0f} are free: another "
                "program holds them. End it, or add a node"
            )
            raise RunError(msg)
        if not is_logged:
            logger.warning("waiting for %s: a run needs %.2g, %.1f are free", kind, needed, free)
            is_logged = True
        time.sleep(_POLL_S)
    return cluster


def check_env(cluster: Cluster, names: Sequence[str]) -> None:
    """Check that every node has the environment variables that the job names.

    Raises:
        RunError: a node lacks one; the message names both.
    """
    if not names:
        return

    def find_missing() -> list[str]:
        return [name for name in names if not os.environ.get(name)]

    wrong = {address: missing for address, missing in run_on_nodes(cluster.nodes, find_missing).items() if missing}
    if wrong:
        listed = "".join(f"\n  {address}: {', '.join(names)}" for address, names in list(wrong.items())[:_MAX_SHOWN])
        more = f"\n  and {len(wrong) - _MAX_SHOWN} more nodes" if len(wrong) > _MAX_SHOWN else ""
        msg = (
            f"compute.env: {len(wrong)} of {len(cluster.nodes)} node(s) lack environment variables that the job names:"
            f"{listed}{more}\nSet them where the node is started (a secret of its pod, its service's environment)"
        )
        raise RunError(msg)


def run_on_nodes(nodes: Sequence[Node], function: Callable[[], _Answer]) -> dict[str, _Answer]:
    """Run a function on every node: address → result. Without a connected cluster the node is this machine."""
    if not ray.is_initialized():
        return {node.address: function() for node in nodes}
    task = ray.remote(num_cpus=0, max_retries=3)(function)
    answers = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
        answers[node.address] = task.options(scheduling_strategy=on_node).remote()
    return {address: ray.get(answer) for address, answer in answers.items()}
