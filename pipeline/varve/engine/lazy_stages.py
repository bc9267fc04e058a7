"""The stage that needs torch and transformers, as Ray receives it: its code is imported in the worker.

The driver would otherwise wait for these imports before it asks for the first replica.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.engine.ray_reporter import RayReporter
from varve.process_state import import_frozen

if TYPE_CHECKING:
    from varve.workers.worker_spec import WorkerSpec


class Replica:
    """One encoder on one device; see workers/replica.py."""

    def __init__(self, spec: "WorkerSpec", reporter: RayReporter) -> None:
        """Load the model and report that it is ready."""
        self._replica = _replica_code().Replica(spec, reporter)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode one part."""
        return self._replica(batch)


@cache
def _replica_code() -> Any:
    return import_frozen("varve.workers.replica")
