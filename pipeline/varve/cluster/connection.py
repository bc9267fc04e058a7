"""The connection to Ray: a cluster that is joined, or a local Ray that is started.

Knows nothing of parts, models or placement. Invariant: importing this file imports neither torch nor transformers.
"""

import atexit
import os

import ray

from varve.cluster.local_ray import end_local_ray, start_local_ray
from varve.cluster.ray_init import init
from varve.config.compute import Compute
from varve.errors import RunError, VarveError, one_line


def start_ray(compute: Compute) -> None:
    """Join the cluster at RAY_ADDRESS, or start a local Ray with room for the replicas.

    Raises:
        RunError: no Ray answers at RAY_ADDRESS, it wants a token, or it has another version; or a local Ray or its
            workers do not start.
    """
    if ray.is_initialized():
        return
    # These exit handlers are called before Ray's own, which waits half a second for output of workers that Varve does
    # not show.
    try:
        if os.environ.get("RAY_ADDRESS"):
            init(address="auto")
            atexit.register(ray.shutdown)
        else:
            atexit.register(end_local_ray, start_local_ray(compute))
    except VarveError:
        raise
    except Exception as e:  # Ray raises no narrower type for a node that does not start in time
        address = os.environ.get("RAY_ADDRESS", "this machine")
        msg = f"could not connect to Ray at {address}: {one_line(e, 300)}"
        raise RunError(msg) from e
