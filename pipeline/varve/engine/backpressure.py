"""Bounds on what Ray Data keeps for each block, so that a driver's memory does not grow with a run.

Ray has no public place for either, so this file stands on modules of Ray's own. Knows nothing of what flows.
Invariant: no result depends on it; a run goes the same way without, and its driver grows.
"""

from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    DownstreamCapacityBackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

# What may wait for a stage, as a multiple of what it has at hand: enough for a write that takes long now and then.
_MOST_WAITING = 10.0


def bound(context: DataContext) -> None:
    """Bound what waits between stages, and what is kept of blocks that are done, for the flows of this context."""
    policies = context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, ENABLED_BACKPRESSURE_POLICIES)
    context.set_config(
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [_ShortQueues if policy is DownstreamCapacityBackpressurePolicy else policy for policy in policies],
    )
    context.downstream_capacity_backpressure_ratio = _MOST_WAITING
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _NoBlockStats]


class _ShortQueues(DownstreamCapacityBackpressurePolicy):
    """Holds a stage back while the next lags, from the first block on.

    Ray's own waits until half of the object store is full, which small blocks never fill; the driver, which keeps
    some 20 kB for each, does.
    """

    OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0


class _NoBlockStats(ExecutionCallback):
    """Drops the times and sizes of blocks, which Ray keeps until an execution ends: Varve's own are in the counters.

    See https://github.com/ray-project/ray/issues/66016.
    """

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        """Empty the lists of all operators; called by the loop that fills them."""
        for operator in getattr(executor, "_topology", None) or ():
            for blocks in operator.get_stats().values():
                blocks.clear()
