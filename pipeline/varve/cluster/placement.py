"""How the work of a run is spread over a cluster: nodes in, a placement out.

Knows nothing of parts or models. Replicas of a pool are alike, so one size must suit all nodes. Nothing is counted on
that something else holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from varve.cluster.nodes import WAIT_S, Cluster, Node, check_env, look, wait_until_free
from varve.config.compute import Compute, Replicas
from varve.errors import JobError

# Share of a core that a reading task declares: it waits more than it works.
IO_CPUS = 0.4
# Of a writing task: it must fit in where reads have left a crumb of a small node, or features pile up unwritten.
WRITE_CPUS = 0.2
# Below this many free cores nothing can be read, encoded and written at the same time.
LEAST_CPUS = 2 * IO_CPUS + 0.1
# Threads of a replica that share one Python without waiting for it.
_MAX_THREADS = 8
# Share of the cores: each replica holds a model, so many small ones are not worth the last core.
_ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Placement:
    """How the work is spread over the cluster."""

    replicas: int
    most_replicas: int  # that the pool may grow to
    threads: int  # of each replica, on a CPU
    gpus: float  # of each replica, or the share of one; 0 on CPUs
    accelerator: str | None  # the only type of GPU to take
    cpus: float  # that a replica declares
    tokenizers: int  # tasks at once; 0: each replica tokenizes for itself

    @property
    def lanes(self) -> int:
        """Packs that all replicas encode at once."""
        return self.replicas * (1 if self.gpus else self.threads)

    @property
    def device(self) -> str:
        """Where replicas run: cuda or cpu."""
        return "cuda" if self.gpus else "cpu"


def gpus_each(cluster: Cluster, compute: Compute) -> float:
    """GPUs of each replica of a job, or the share of one.

    Raises:
        JobError: the job wants GPUs, and the cluster has none that fit.
    """
    fitting = [node for node in cluster.nodes if _fits(node, compute)]
    wanted = compute.gpus if compute.gpus != "auto" else float(bool(fitting) or compute.accelerator is not None)
    # A number of replicas that the user gives may be what an autoscaler grows the cluster to.
    if wanted and compute.replicas == "auto" and not any(node.gpus >= wanted for node in fitting):
        has = sorted(
            {f"{node.gpus:g} of type {node.accelerator or 'unknown type'}" for node in cluster.nodes if node.gpus}
        )
        of_type = f" of type {compute.accelerator}" if compute.accelerator else ""
        msg = (
            f"compute: a replica wants {wanted:g} GPU(s){of_type}, and no node has that: there are "
            f"{', '.join(has) or 'no GPUs'}. Correct compute.gpus or compute.accelerator; where an autoscaler brings "
            "such nodes, say how many with compute.replicas"
        )
        raise JobError(msg)
    return wanted


def place_workers(cluster: Cluster, compute: Compute) -> Placement:
    """Spread a job over a cluster.

    A replica on a CPU has a thread for each of its cores. Beyond `_MAX_THREADS` threads would wait for each other's
    Python, so large machines take several replicas. Where everything is on one node, what something else holds there
    is left alone; of several nodes Ray does not say which has how much free.

    Raises:
        JobError: the job wants GPUs, and the cluster has none that fit.
    """
    gpus = gpus_each(cluster, compute)
    asked = compute.replicas.min if isinstance(compute.replicas, Replicas) else compute.replicas
    cores = [node.cpus for node in cluster.nodes if node.cpus] if len(cluster.nodes) > 1 else [cluster.free_cpus]
    if gpus:
        auto, cpus, threads = _on_gpus(cluster, compute, gpus)
        replicas = auto if asked == "auto" else asked
    else:
        size = _size(cores, asked if isinstance(asked, int) else None)
        replicas = max(1, sum(int(count // size) for count in cores)) if asked == "auto" else asked
        cpus, threads = _declared(cores, size), max(1, int(size))
    spare = int(cluster.free_cpus - replicas * cpus - 2 * IO_CPUS)
    auto_tokenizers = max(1, spare) if gpus else 0
    return Placement(
        replicas=replicas,
        most_replicas=compute.replicas.max if isinstance(compute.replicas, Replicas) else replicas,
        threads=threads,
        gpus=gpus,
        accelerator=compute.accelerator if gpus else None,
        cpus=cpus,
        tokenizers=auto_tokenizers if compute.tokenizers == "auto" else compute.tokenizers,
    )


def place_on_cluster(compute: Compute, wait_s: float = WAIT_S) -> tuple[Cluster, Placement]:
    """The cluster that Ray is connected to and the job's place on it, once there is room to run at all.

    Raises:
        JobError: the job wants GPUs, and the cluster has none that fit.
        RunError: there is no room within `wait_s`, or a node lacks an environment variable.
    """
    now = look()
    gpus = gpus_each(now, compute)
    cluster = wait_until_free(LEAST_CPUS, gpus if any(_fits(node, compute) for node in now.nodes) else 0.0, wait_s)
    check_env(cluster, compute.env)
    return cluster, place_workers(cluster, compute)


def _fits(node: Node, compute: Compute) -> bool:
    return node.gpus > 0 and (compute.accelerator is None or node.accelerator == compute.accelerator)


def _on_gpus(cluster: Cluster, compute: Compute, gpus: float) -> tuple[int, float, int]:
    """(replicas that fit, CPUs that each declares, threads of each)."""
    places = [(node.cpus, int(node.gpus / gpus)) for node in cluster.nodes if _fits(node, compute)]
    places = [(cpus, count) for cpus, count in places if count]
    replicas = min(sum(count for _, count in places), int(cluster.free_gpus / gpus))
    # Nodes that an autoscaler is to bring are not known yet.
    cores = min((cpus / count for cpus, count in places), default=1.0)
    declared = min((_whole((cpus - 2 * IO_CPUS) / count) for cpus, count in places), default=1.0)
    return max(1, replicas), min(1.0, declared), max(1, int(cores))


def _size(cores: Sequence[float], replicas: int | None) -> float:
    """Cores of a replica: the largest size that leaves next to no core idle, over all nodes.

    With a number of replicas given: the largest size of which so many fit.
    """
    if replicas is not None:
        fitting = [size for size in range(1, int(max(cores)) + 1) if sum(int(c // size) for c in cores) >= replicas]
        return float(max(fitting)) if fitting else sum(cores) / replicas
    sizes = range(1, min(_MAX_THREADS, max(1, int(max(cores)))) + 1)
    used = {size: sum(int(count // size) for count in cores) * size for size in sizes}
    return float(max(size for size in sizes if used[size] >= _ENOUGH * max(used.values())))


def _declared(cores: Sequence[float], size: float) -> float:
    """Cores that a replica declares: never so many that no reading or writing task finds room on its node.

    Replicas that hold every core leave none to read with, and the run hangs (ray-project/ray#44687).
    """
    held = [(count, count // size) for count in cores if count >= size] or [(max(cores), 1.0)]
    return min(_whole((count - 2 * IO_CPUS) / replicas) for count, replicas in held)


def _whole(cpus: float) -> float:
    """Ray takes fractions below one core only."""
    return float(int(cpus)) if cpus >= 1 else max(0.01, round(cpus, 2) - 0.01)


def diagnose(placement: Placement, now: Cluster, replicas: int, under_way: int) -> str:
    """What a run that stands still waits for, in words."""
    left = f"{now.free_cpus:.1f} of {now.cpus:.0f} CPUs"
    left += f", {now.free_gpus:.1f} of {now.gpus:.0f} GPUs" if now.gpus else ""
    gpu = f" and {placement.gpus:g} GPU{f' of type {placement.accelerator}' if placement.accelerator else ''}"
    needs = f"{placement.cpus:g} CPUs" + (gpu if placement.gpus else "")
    if replicas < placement.replicas and not under_way:
        what = f"{replicas} of {placement.replicas} replica(s) could be started; each needs {needs}"
    elif under_way:
        what = f"{under_way} part(s) are under way, and no block of them was finished"
    else:
        what = f"no part reaches a replica; a read needs {IO_CPUS} CPUs, a write {WRITE_CPUS}"
    return f"{what}. Free now: {left}. If blocks take that long here, raise compute.stall_s"
