"""The stages that need torch or transformers, as Ray receives them: their code is imported in the worker.

The driver would otherwise wait for these imports before it asks for the first replica.
"""

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.engine.ray_reporter import RayReporter
from varve.process_state import import_frozen

if TYPE_CHECKING:
    from varve.workers.worker_spec import WorkerSpec

# Added to the niceness of a tokenizer process, which Ray starts with 15.
_ADDED_NICENESS = 4


class Replica:
    """One encoder on one device; see workers/replica.py."""

    def __init__(self, spec: "WorkerSpec", reporter: RayReporter) -> None:
        """Load the model and report that it is ready."""
        self._replica = _replica_code().Replica(spec, reporter)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode one part."""
        return self._replica(batch)


def tokenize_part(batch: pa.Table, spec: "WorkerSpec", reporter: RayReporter) -> pa.Table:
    """Add the tokens of its blocks to a part; see workers/tokenize_stage.py."""
    return _tokenizer_code().tokenize_part(batch, spec, reporter)


@cache
def _replica_code() -> Any:
    return import_frozen("varve.workers.replica")


@cache
def _tokenizer_code() -> Any:
    """The tokenizer's code, in a process of lower priority: tokenizing must not delay the host threads of a GPU."""
    os.nice(_ADDED_NICENESS)
    return import_frozen("varve.workers.tokenize_stage")
