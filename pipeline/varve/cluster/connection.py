"""The connection to Ray: a cluster that is joined, or a local Ray that is started.

Knows nothing of parts, models or placement. Invariant: importing this file imports neither torch nor transformers.
"""

import atexit
import os
from collections.abc import Callable

import ray

from varve.cluster.local_ray import start_local_ray
from varve.cluster.prepared_ray import PreparedRay
from varve.cluster.ray_init import init
from varve.config.compute import Compute
from varve.errors import RunError, VarveError, one_line


def start_ray(compute: Compute) -> None:
    """Join the cluster at RAY_ADDRESS, or start a local Ray with room for the replicas.

    Raises:
        RunError: no Ray answers at RAY_ADDRESS, it wants a token, or it has another version; or a local Ray or its
            workers do not start.
    """
    begin_ray(compute)()


def begin_ray(compute: Compute, prepared: PreparedRay | None = None) -> Callable[[], None]:
    """`start_ray` that does not wait for the workers of a local Ray.

    Args:
        compute: size of the object store, number of replicas.
        prepared: the local Ray to start; ended here if none is started.

    Returns:
        What waits for the first worker, and raises RunError if there is none.

    Raises:
        RunError: see `start_ray`.
    """
    if ray.is_initialized():
        return _is_ready
    try:
        if os.environ.get("RAY_ADDRESS"):
            init(address="auto")
            atexit.register(ray.shutdown)  # before Ray's own handler, see local_ray.py
            return _is_ready
        return start_local_ray(prepared or PreparedRay.prepare(compute))
    except VarveError:
        raise
    except Exception as e:  # Ray raises no narrower type for a node that does not start in time
        address = os.environ.get("RAY_ADDRESS", "this machine")
        msg = f"could not connect to Ray at {address}: {one_line(e, 300)}"
        raise RunError(msg) from e


def _is_ready() -> None:
    """Workers of a Ray that runs already start when they are needed."""
