"""Where the workers of a run go: from the nodes of a cluster to a placement.

Knows nothing of parts or models. All replicas of a pool have the same size, which must fit every node. Resources that
other programs hold are never counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from varve.cluster.nodes import WAIT_S, Cluster, Node, check_env, read_cluster, wait_until_free
from varve.config.compute import Compute, Replicas
from varve.errors import JobError

# CPUs that a reading task declares: it waits more than it works.
IO_CPUS = 0.4
# CPUs of a writing task: small enough to fit next to reads on a small node, or finished features pile up in memory.
WRITE_CPUS = 0.2
# With fewer free CPUs, reading, encoding and writing cannot run at the same time.
LEAST_CPUS = 2 * IO_CPUS + 0.1
# More threads of one replica would wait for its Python interpreter lock.
_MAX_THREADS = 8
# Share of the cores of a GPU's node that its replicas declare. Writing costs as much as feeding.
_FEEDING_SHARE = 0.5
# A replica size that uses this share of the cores is good enough: each replica holds a model, so small replicas are
# not worth the last core.
_ENOUGH_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Placement:
    """How many workers a run has, and what each declares."""

    replicas: int
    most_replicas: int  # up to which the pool may grow
    threads: int  # cores that each replica may use: its lanes on a CPU, what feeds it on a GPU
    gpus: float  # of each replica, or its share of one; 0 on CPUs
    accelerator: str | None  # the type of GPU that replicas need; None for any
    cpus: float  # that each replica declares

    @property
    def lanes(self) -> int:
        """Packs that all replicas encode at the same time."""
        return self.replicas * (1 if self.gpus else self.threads)

    @property
    def device(self) -> str:
        """Device of the replicas: "cuda" or "cpu"."""
        return "cuda" if self.gpus else "cpu"


def gpus_each(cluster: Cluster, compute: Compute) -> float:
    """GPUs of each replica of a job, or its share of one.

    Raises:
        JobError: the job asks for GPUs that the cluster does not have.
    """
    fitting = [node for node in cluster.nodes if _fits(node, compute)]
    wanted = compute.gpus if compute.gpus != "auto" else float(bool(fitting) or compute.accelerator is not None)
    # With a given number of replicas an autoscaler may still add the nodes.
    if wanted and compute.replicas == "auto" and not any(node.gpus >= wanted for node in fitting):
        has = sorted(
            {f"{node.gpus:g} of type {node.accelerator or 'unknown type'}" for node in cluster.nodes if node.gpus}
        )
        of_type = f" of type {compute.accelerator}" if compute.accelerator else ""
        msg = (
            f"compute: a replica needs {wanted:g} GPU(s){of_type}, and no node has them: the cluster has "
            f"{', '.join(has) or 'no GPUs'}. Correct compute.gpus or compute.accelerator; if an autoscaler adds such "
            "nodes, set compute.replicas"
        )
        raise JobError(msg)
    return wanted


def place_workers(cluster: Cluster, compute: Compute) -> Placement:
    """Place the workers of a job on a cluster.

    A replica on a CPU has one thread per core, up to `_MAX_THREADS`; large machines get several replicas. On a single
    node only its free CPUs are used; with several nodes Ray does not report what is free on each.

    Raises:
        JobError: the job asks for GPUs that the cluster does not have.
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
    return Placement(
        replicas=replicas,
        most_replicas=compute.replicas.max if isinstance(compute.replicas, Replicas) else replicas,
        threads=threads,
        gpus=gpus,
        accelerator=compute.accelerator if gpus else None,
        cpus=cpus,
    )


def place_on_cluster(compute: Compute, wait_s: float = WAIT_S) -> tuple[Cluster, Placement]:
    """Wait until the connected cluster has room for the job; returns the cluster and the placement.

    Raises:
        JobError: the job asks for GPUs that the cluster does not have.
        RunError: there is no room within `wait_s`, or a node lacks an environment variable of compute.env.
    """
    now = read_cluster()
    gpus = gpus_each(now, compute)
    cluster = wait_until_free(LEAST_CPUS, gpus if any(_fits(node, compute) for node in now.nodes) else 0.0, wait_s)
    check_env(cluster, compute.env)
    return cluster, place_workers(cluster, compute)


def _fits(node: Node, compute: Compute) -> bool:
    return node.gpus > 0 and (compute.accelerator is None or node.accelerator == compute.accelerator)


def _on_gpus(cluster: Cluster, compute: Compute, gpus: float) -> tuple[int, float, int]:
    """(number of replicas that fit, CPUs that each declares, cores of each).

    A replica feeds its device with `_FEEDING_SHARE` of its share of the node's cores; the others read and write.
    """
    single = len(cluster.nodes) == 1
    places = [
        (cluster.free_cpus if single else node.cpus, int(node.gpus / gpus))
        for node in cluster.nodes
        if _fits(node, compute)
    ]
    places = [(cpus, count) for cpus, count in places if count]
    replicas = min(sum(count for _, count in places), int(cluster.free_gpus / gpus))
    # The nodes that an autoscaler will add are not known yet.
    cores = min((cpus / count for cpus, count in places), default=1.0)
    feeding = (min(cpus - 2 * IO_CPUS, _FEEDING_SHARE * cpus) / count for cpus, count in places)
    return max(1, replicas), min(map(_whole, feeding), default=1.0), max(1, int(cores))


def _size(cores: Sequence[float], replicas: int | None) -> float:
    """Cores of a replica: the largest size that leaves hardly any core of any node idle.

    With a given number of replicas: the largest size of which that many fit.
    """
    if replicas is not None:
        fitting = [size for size in range(1, int(max(cores)) + 1) if sum(int(c // size) for c in cores) >= replicas]
        return float(max(fitting)) if fitting else sum(cores) / replicas
    sizes = range(1, min(_MAX_THREADS, max(1, int(max(cores)))) + 1)
    used = {size: sum(int(count // size) for count in cores) * size for size in sizes}
    return float(max(size for size in sizes if used[size] >= _ENOUGH_SHARE * max(used.values())))


def _declared(cores: Sequence[float], size: float) -> float:
    """CPUs that a replica declares: few enough that reading and writing tasks fit on its node.

    If replicas hold every CPU, no read can start and the run hangs (ray-project/ray#44687).
    """
    held = [(count, count // size) for count in cores if count >= size] or [(max(cores), 1.0)]
    return min(_whole((count - 2 * IO_CPUS) / replicas) for count, replicas in held)


def _whole(cpus: float) -> float:
    """Round down to what Ray accepts: fractions only below one CPU."""
    return float(int(cpus)) if cpus >= 1 else max(0.01, round(cpus, 2) - 0.01)


def diagnose(placement: Placement, now: Cluster, replicas: int, under_way: int) -> str:
    """Describe what a run without progress waits for."""
    free = f"{now.free_cpus:.1f} of {now.cpus:.0f} CPUs"
    free += f", {now.free_gpus:.1f} of {now.gpus:.0f} GPUs" if now.gpus else ""
    gpu = f" and {placement.gpus:g} GPU{f' of type {placement.accelerator}' if placement.accelerator else ''}"
    needs = f"{placement.cpus:g} CPUs" + (gpu if placement.gpus else "")
    if replicas < placement.replicas and not under_way:
        state = f"{replicas} of {placement.replicas} replica(s) have started; each needs {needs}"
    elif under_way:
        state = f"{under_way} part(s) are being encoded, and none of their blocks has finished"
    else:
        state = f"no part reaches a replica; a read needs {IO_CPUS} CPUs, a write {WRITE_CPUS}"
    return f"{state}. Free now: {free}. If blocks take that long on this hardware, raise compute.stall_s"
