"""What the nodes of a cluster have, and whether they are fit for a run.

Knows nothing of parts or models. Invariant: values of environment variables stay on their nodes; only names travel.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varve.errors import RunError

# Something else may be about to end.
WAIT_S = 60.0
# A cloud takes minutes to start a machine.
NODES_WAIT_S = 900.0
_LOOK_EVERY_S = 0.5
_TYPE = "accelerator_type:"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster, as Ray counts it."""

    id: str
    address: str
    cpus: float
    gpus: float = 0.0
    accelerator: str | None = None  # type of its GPUs, where Ray knows it
    memory_bytes: float = 0.0
    object_store_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes that are alive, and what is free on them together."""

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


def look() -> Cluster:
    """The cluster that Ray is connected to, as it is now."""
    free = ray.available_resources()
    nodes = [
        _node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
    ]
    return Cluster(tuple(nodes), free.get("CPU", 0.0), free.get("GPU", 0.0))


def _node(node_id: str, address: str, has: dict[str, float]) -> Node:
    types = [name.removeprefix(_TYPE) for name in has if name.startswith(_TYPE)]
    return Node(
        id=node_id,
        address=address,
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        accelerator=types[0] if types else None,
        memory_bytes=has.get("memory", 0.0),
        object_store_bytes=has.get("object_store_memory", 0.0),
    )


def this_machine() -> Cluster:
    """This machine as Ray would count it, without starting one."""
    import torch  # noqa: PLC0415 (processes that read and write do not wait for it)

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    return Cluster((Node("", "this machine", cpus, gpus),), cpus, gpus)


def wait_until_free(cpus: float, gpus: float, wait_s: float = WAIT_S) -> Cluster:
    """The cluster, as soon as so much of it is free.

    Raises:
        RunError: that is not so within `wait_s`, or within `NODES_WAIT_S` where the nodes are still to come.
    """
    began = time.monotonic()
    told = False
    while (now := look()).free_cpus < cpus or now.free_gpus < gpus:
        kind, needs, free, whole = (
            ("CPUs", cpus, now.free_cpus, now.cpus) if now.free_cpus < cpus else ("GPUs", gpus, now.free_gpus, now.gpus)
        )
        if time.monotonic() - began > (wait_s if whole >= needs else max(wait_s, NODES_WAIT_S)):
            msg = (
                f"a run needs {needs:.2g} free {kind} at the least, and Ray has {free:.1f} of {whole:.0f}: something "
                "else holds them. End it, or add a node"
            )
            raise RunError(msg)
        if not told:
            sys.stderr.write(f"waiting for {kind}: {free:.1f} are free\n")
            told = True
        time.sleep(_LOOK_EVERY_S)
    return now


def check_env(cluster: Cluster, names: Sequence[str]) -> None:
    """Every node must have the environment variables that the job names.

    Raises:
        RunError: one has not; it is named with what it lacks.
    """
    if not names:
        return

    def lacks() -> list[str]:
        return [name for name in names if not os.environ.get(name)]

    look_there = ray.remote(num_cpus=0, max_retries=3)(lacks)
    asked = {}
    for node in cluster.nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[node.address] = look_there.options(scheduling_strategy=there).remote()
    wrong = {address: missing for address, answer in asked.items() if (missing := ray.get(answer))}
    if wrong:
        listed = "".join(f"\n  {address}: {', '.join(missing)}" for address, missing in list(wrong.items())[:_SHOWN])
        more = f"\n  and {len(wrong) - _SHOWN} more nodes" if len(wrong) > _SHOWN else ""
        msg = (
            f"compute.env: {len(wrong)} of {len(cluster.nodes)} node(s) lack environment variables that the job names:"
            f"{listed}{more}\nSet them where the node is started (a secret of its pod, its service's environment)"
        )
        raise RunError(msg)
