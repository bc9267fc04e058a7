"""Ray tasks outside the dataflow, and how Ray's exceptions become Varve's errors. Knows nothing of parts."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import cloudpickle
from ray.data import DataContext
from ray.exceptions import RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varve.cluster.model_files import ModelFiles
from varve.cluster.nodes import read_cluster
from varve.cluster.placement import Placement
from varve.engine.data_context import quiet_ray_data
from varve.errors import JobError, RunError, VarveError

if TYPE_CHECKING:
    from varve.planning.plan import Plan

T = TypeVar("T")

# Retries of a task whose worker or node dies; Ray's default for writes is unlimited.
MAX_RETRIES = 10
# Options of an actor with an encoder: the next call waits in the actor while one is encoded, so that the device never
# waits between them.
TWO_CALLS: dict[str, Any] = {
    "max_tasks_in_flight_per_actor": 2,
    "max_concurrent_calls_per_actor": 2,
    "enable_true_multi_threading": True,
}
# Enough blocks that one slow block at the end keeps few CPUs waiting.
_BLOCKS_PER_CPU = 8
_MOST_BLOCKS = 10_000  # each costs the driver milliseconds
# Ray reports an exception of an actor's constructor only as the text of its traceback, which ends with Varve's error.
_RAISED = re.compile(r".*^varve\.errors\.(JobError|RunError): (.*)", re.MULTILINE | re.DOTALL)
# Ray appends advice for its own users to Varve's message.
_RAY_ADVICE = "\nFailed to apply UDF transform"


def spread(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Apply a function to each item in Ray tasks; yields the results in any order.

    Raises:
        JobError: the function raised it.
        RunError: Ray failed, or the function raised it.
    """
    if not items:
        return
    blocks = min(len(items), _BLOCKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1))), _MOST_BLOCKS)
    context = DataContext.get_current().copy()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    context.raise_original_map_exception = True  # otherwise all that remains of an error is the text of tracebacks
    try:
        with quiet_ray_data(context):

            def take(row: dict[str, Any]) -> list[dict[str, Any]]:
                return [{"result": work(item)} for item in cloudpickle.loads(row["items"])]

            # Each task gets its own items alone: there may be very many, and many tasks.
            groups = [{"items": _dumps(items[block::blocks])} for block in range(blocks)]
            rows = ray.data.from_items(groups, override_num_blocks=blocks)
            for row in rows.flat_map(take, num_cpus=1, max_retries=MAX_RETRIES).iter_rows():
                yield row["result"]
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e


def _dumps(items: Sequence[Any]) -> bytes:
    return cloudpickle.dumps(items)  # pyright: ignore[reportPrivateImportUsage] (it re-exports all names)


def on_replica(plan: "Plan", placement: Placement, work: Callable[["Plan"], T]) -> T:
    """Call a function once where a replica would run: on its node, with its device and its copy of the model.

    Raises:
        JobError: the function raised it.
        RunError: Ray failed, or the function raised it.
    """
    files = model_files(plan, placement)

    def call() -> T:
        root = files.local_folder() if files else plan.checkpoint.root
        return work(replace(plan, checkpoint=replace(plan.checkpoint, root=root)))

    options = {"num_cpus": placement.cpus, "num_gpus": placement.gpus, "max_retries": MAX_RETRIES}
    options |= {"accelerator_type": placement.accelerator} if placement.accelerator else {}
    try:
        return ray.get(ray.remote(**options)(call).remote())
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e


def on_this_node(work: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a worker of this node; it may be called again if the worker dies.

    Raises:
        JobError: the function raised it.
        RunError: Ray failed, or the function raised it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": MAX_RETRIES, "scheduling_strategy": here}
    try:
        return ray.get(ray.remote(**options)(work).remote(*arguments))
    except (RayError, UserCodeException, VarveError) as e:
        raise unwrap_error(e) from e


def model_files(plan: "Plan", placement: Placement) -> ModelFiles | None:
    """The checkpoint's files for other nodes; None if there is one node and the pool cannot grow."""
    single = len(read_cluster().nodes) == 1 and placement.most_replicas == placement.replicas
    if single:
        return None
    checkpoint = plan.checkpoint
    declared = checkpoint.declaration.files if checkpoint.declaration else ()
    return ModelFiles(checkpoint.root, folders=("", checkpoint.body, checkpoint.tokenizer), files=declared)


def unwrap_error(error: BaseException) -> VarveError:
    """Varve's own error out of the layers in which Ray wraps it; any other error as one message."""
    cause: BaseException | None = error
    while cause is not None:
        for candidate in (cause, getattr(cause, "cause", None)):
            if isinstance(candidate, VarveError):
                kind = JobError if isinstance(candidate, JobError) else RunError
                return kind(str(candidate.args[0]).partition(_RAY_ADVICE)[0])
        cause = cause.__cause__
    text = str(error).partition(_RAY_ADVICE)[0]
    if raised := _RAISED.match(text):
        return (JobError if raised[1] == "JobError" else RunError)(raised[2].strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return RunError(f"the run failed in Ray: {lines[-1] if lines else type(error).__name__}")
