"""The Ray that a run stands on: joined or started, how the work is spread over it, what it lacks.

Knows nothing of parts or models. Invariant: importing this file brings neither torch nor transformers.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from typing import Any

import ray

from pipeline.errors import RunError
from pipeline.spec import Compute

# Share of a core that a reading task declares: it waits more than it works.
IO_CPUS = 0.4
# Of a writing task: it must fit in where reads have left a crumb of a small node, or features pile up unwritten.
WRITE_CPUS = 0.2
# Threads of a replica that share one Python without waiting for it.
_MAX_THREADS = 8
# Below this many free cores nothing can be read, encoded and written at the same time.
_LEAST_CPUS = 2 * IO_CPUS + 0.1
# Something else may be about to end.
_WAIT_FOR_CPUS_S = 60.0


def start_ray(compute: Compute) -> None:
    """Connect to a running Ray, or start one here with room for the replicas."""
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _silenced_stderr():
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(address="auto", **quiet)
            else:
                # "local": a cluster that somebody else has started on this machine is not ours to take.
                replicas = compute.replicas if isinstance(compute.replicas, int) else 1
                cpus = max(os.cpu_count() or 1, replicas + 1)
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        except Exception as e:  # a node that does not come up in time raises no narrower one
            where = os.environ.get("RAY_ADDRESS", "this machine")
            msg = f"Ray at {where} could not be joined: {' '.join(str(e).split())[:300]}"
            raise RunError(msg) from e
        finally:
            # Ray puts its own in place, which ends the process with the signal's number for an exit code.
            if current_thread() is main_thread():
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is spread over the cluster."""

    replicas: int
    threads: int  # of each replica, on a CPU
    gpus: int  # of each replica: 1 or 0
    cpus: float  # that a replica declares
    tokenizers: int  # tasks at once; 0: each replica tokenizes for itself

    @property
    def lanes(self) -> int:
        """Packs that all replicas encode at once."""
        return self.replicas * (1 if self.gpus else self.threads)


def lay_out(compute: Compute, wait_s: float = _WAIT_FOR_CPUS_S) -> Layout:
    """Spread a job over the cluster that Ray is connected to.

    What something else holds is not counted on. A replica on a CPU has a thread for each of its cores. Beyond
    `_MAX_THREADS` threads would wait for each other's Python, so large machines take several replicas.

    Raises:
        RunError: nothing is free, and nothing becomes free within `wait_s`.
    """
    free = _wait_for_cpus(wait_s)
    gpus, cores = int(free.get("GPU", 0)), free["CPU"]
    auto = gpus or max(1, round(cores / _MAX_THREADS))
    replicas = auto if compute.replicas == "auto" else compute.replicas
    cpus = _replica_cpus(cores, replicas, most=1.0 if gpus else cores)
    spare = int(cores - replicas * cpus - 2 * IO_CPUS)
    tokenizers = (max(1, spare) if gpus else 0) if compute.tokenizers == "auto" else compute.tokenizers
    return Layout(replicas, max(1, int(cores // replicas)), min(gpus, 1), cpus, tokenizers)


def _wait_for_cpus(wait_s: float) -> Mapping[str, float]:
    """What is free, as soon as that is enough to run at all."""
    deadline = time.monotonic() + wait_s
    told = False
    while (free := ray.available_resources()).get("CPU", 0.0) < _LEAST_CPUS:
        if time.monotonic() > deadline:
            msg = (
                f"a run needs {_LEAST_CPUS:.1f} free CPUs at the least, and Ray has {free.get('CPU', 0.0):.1f} of "
                f"{ray.cluster_resources().get('CPU', 0.0):.0f}: something else holds them. End it, or add a node"
            )
            raise RunError(msg)
        if not told:
            sys.stderr.write(f"waiting for CPUs: {free.get('CPU', 0.0):.1f} are free\n")
            told = True
        time.sleep(0.5)
    return free


def diagnose(layout: Layout, replicas: int, under_way: int) -> str:
    """What a run that stands still waits for, in words."""
    free, whole = ray.available_resources(), ray.cluster_resources()
    kinds = [kind for kind in ("CPU", "GPU") if whole.get(kind)]
    left = ", ".join(f"{free.get(kind, 0.0):.1f} of {whole[kind]:.0f} {kind}s" for kind in kinds)
    needs = f"{layout.cpus:g} CPUs" + (f" and {layout.gpus} GPU" if layout.gpus else "")
    if replicas < layout.replicas and not under_way:
        what = f"{replicas} of {layout.replicas} replica(s) could be started; each needs {needs}"
    elif under_way:
        what = f"{under_way} part(s) are under way, and no block of them was finished"
    else:
        what = f"no part reaches a replica; a read needs {IO_CPUS} CPUs, a write {WRITE_CPUS}"
    return f"{what}. Free now: {left}. If blocks take that long here, raise compute.stall_s"


def _replica_cpus(cores: float, replicas: int, most: float) -> float:
    """Cores that a replica declares: never so many that no reading or writing task finds room.

    Replicas that hold every core leave none to read with, and the run hangs (ray-project/ray#44687). Ray takes
    fractions below one core only.
    """
    share = min(most, (cores - 2 * IO_CPUS) / replicas)
    return float(int(share)) if share >= 1 else max(0.01, round(share, 2) - 0.01)


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Keep what Ray's C++ side writes to stderr while it starts out of the user's terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
