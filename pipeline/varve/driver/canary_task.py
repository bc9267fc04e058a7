"""The canary as a task of Ray, so that the driver imports neither torch nor the model's code.

Knows nothing of what is compared. Invariant: importing this file imports neither torch nor transformers.
"""

import os
from typing import TYPE_CHECKING, Any

from varve.engine.ray_tasks import on_this_node
from varve.output.part_table import PartTable
from varve.process_state import import_without_gc
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from varve.planning.plan import Plan


def compare(plan: "Plan", storage: Storage, parts: PartTable, *, in_task: bool) -> dict[str, Any]:
    """Encode a sample of a run's rows again, see `verification.canary.compare`.

    Args:
        plan: of the run.
        storage: its output.
        parts: its committed parts.
        in_task: compare in a worker of this node; False: in this process, if no Ray is connected.

    Raises:
        RunError: a row cannot be read again from the source or the output, or Ray failed.
    """
    return on_this_node(_compare_in_worker, plan, storage, parts) if in_task else _compare(plan, storage, parts)


def _compare_in_worker(plan: "Plan", storage: Storage, parts: PartTable) -> dict[str, Any]:
    # Ray allows a task without CPUs one thread; replicas have finished by then.
    import_without_gc("torch").set_num_threads(os.cpu_count() or 1)
    return _compare(plan, storage, parts)


def _compare(plan: "Plan", storage: Storage, parts: PartTable) -> dict[str, Any]:
    return import_without_gc("varve.verification.canary").compare(plan, storage, parts)
