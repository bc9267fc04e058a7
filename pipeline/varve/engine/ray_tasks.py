"""WorkerSpec beside the graph: the same for each of many things, or something once where a replica would stand.

Knows nothing of parts. What Ray raises leaves here, and the graph, as an error of ours.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.data import DataContext
from ray.exceptions import RayError, UserCodeException

from varve.cluster.model_files import ModelFiles
from varve.cluster.nodes import look
from varve.cluster.placement import Placement
from varve.errors import JobError, RunError, VarveError

if TYPE_CHECKING:
    from varve.planning.plan import Plan

T = TypeVar("T")

# Of a task whose worker or node dies. Ray's own default for writes is without end.
MAX_RETRIES = 10
# Of an actor with an encoder: what is next waits beside what is encoded, so that no lane runs dry between them.
TWO_CALLS: dict[str, Any] = {
    "max_tasks_in_flight_per_actor": 2,
    "max_concurrent_calls_per_actor": 2,
    "enable_true_multi_threading": True,
}
# Enough that one slow block at the end keeps few waiting.
_BLOCKS_PER_CPU = 8
# What an actor raised while it started is unwrap_error by Ray as a traceback's text alone; ours ends the last of it.
_RAISED = re.compile(r".*^varve\.errors\.(JobError|RunError): (.*)", re.MULTILINE | re.DOTALL)


def spread(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Do the same for each of many things as Ray tasks; results come in any order.

    Raises:
        JobError: the work said that the job is wrong.
        RunError: Ray failed, or the work did.
    """
    if not items:
        return
    blocks = min(len(items), _BLOCKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1))))
    context = DataContext.get_current().copy()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    try:
        with warnings.catch_warnings(action="ignore"), DataContext.current(context):
            held = ray.put(items)  # once, as they are: there may be very many

            def take(row: dict[str, int]) -> list[dict[str, Any]]:
                return [{"result": work(item)} for item in ray.get(held)[row["id"] :: blocks]]

            rows = ray.data.range(blocks, override_num_blocks=blocks)
            for row in rows.flat_map(take, num_cpus=1, max_retries=MAX_RETRIES).iter_rows():
                yield row["result"]
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e


def on_replica(plan: "Plan", placement: Placement, work: Callable[["Plan"], T]) -> T:
    """Do something once where a replica would stand: its node, its share of the device, its copy of the model.

    Raises:
        JobError: the work said that the job is wrong.
        RunError: Ray failed, or the work did.
    """
    files = model_files(plan, placement)

    def there() -> T:
        folder = files.here() if files else plan.checkpoint.folder
        return work(replace(plan, checkpoint=replace(plan.checkpoint, folder=folder)))

    place = {"num_cpus": placement.cpus, "num_gpus": placement.gpus, "max_retries": MAX_RETRIES}
    place |= {"accelerator_type": placement.accelerator} if placement.accelerator else {}
    try:
        return ray.get(ray.remote(**place)(there).remote())
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e


def model_files(plan: "Plan", placement: Placement) -> ModelFiles | None:
    """The checkpoint's files for other nodes, where there are any or may be some day."""
    alone = len(look().nodes) == 1 and placement.most_replicas == placement.replicas
    return None if alone else ModelFiles(plan.checkpoint.folder)


def unwrap_error(error: BaseException) -> VarveError:
    """Our own error out of the layers in which Ray wraps it, or Ray's in one message."""
    advice = "\nFailed to apply UDF transform"  # Ray puts its own users' options behind our message
    seen: BaseException | None = error
    while seen is not None:
        for candidate in (seen, getattr(seen, "cause", None)):
            if isinstance(candidate, VarveError):
                kind = JobError if isinstance(candidate, JobError) else RunError
                return kind(str(candidate.args[0]).partition(advice)[0])
        seen = seen.__cause__
    text = str(error).partition(advice)[0]
    if raised := _RAISED.match(text):
        return (JobError if raised[1] == "JobError" else RunError)(raised[2].strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return RunError(f"the run failed in Ray: {lines[-1] if lines else type(error).__name__}")
