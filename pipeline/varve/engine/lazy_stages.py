"""What Ray is given to start on the workers: the stages with a model, whose code is imported there and not here.

The driver would wait for that code before the first replica is even asked for.
"""

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.engine.ray_reporter import RayReporter
from varve.import_gc import uncollected

if TYPE_CHECKING:
    from varve.workers.worker_spec import WorkerSpec

# Of a process that tokenizes, beyond Ray's 15.
_NICER = 4


class Replica:
    """One encoder on one device."""

    def __init__(self, spec: "WorkerSpec", reporter: RayReporter) -> None:
        """Load the model and report; see varve/workers/replica.py."""
        self._replica = _code().Replica(spec, reporter)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Bring a part's texts to its features."""
        return self._replica(batch)


def tokenize_part(batch: pa.Table, spec: "WorkerSpec", reporter: RayReporter) -> pa.Table:
    """Add the tokens of its blocks to a part on its way to a replica."""
    return _behind_replicas().tokenize_part(batch, spec, reporter)


@cache
def _code() -> Any:
    """What a replica does, imported once in a process."""
    with uncollected():
        return import_module("varve.workers.replica")


@cache
def _behind_replicas() -> Any:
    """What tokenizes, imported once in a process, which gets the time that replicas leave: a GPU waits for theirs."""
    os.nice(_NICER)
    with uncollected():
        return import_module("varve.workers.tokenize_stage")
