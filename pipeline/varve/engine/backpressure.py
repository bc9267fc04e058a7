"""Bounds on what Ray Data keeps of each block, so that the driver's memory does not grow with the run.

Ray has no public option for either bound, so this file uses private modules of Ray. Knows nothing of the data.
Invariant: no result depends on it. If a private part moves or raises, the run continues with a warning and its driver's
memory grows.
"""

import logging
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

logger = logging.getLogger(__name__)

# Blocks that may wait for a stage, as a multiple of those in work: enough for a write that takes long now and then.
_MAX_WAITING_RATIO = 10.0


def bound_queues(context: DataContext) -> None:
    """Bound the blocks that wait between stages and the statistics of finished blocks in this context's dataflows."""
    policies = context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, ENABLED_BACKPRESSURE_POLICIES)
    context.set_config(
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [_ShortQueues if policy is DownstreamCapacityBackpressurePolicy else policy for policy in policies],
    )
    context.downstream_capacity_backpressure_ratio = _MAX_WAITING_RATIO
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _DropBlockStats]


class _ShortQueues(DownstreamCapacityBackpressurePolicy):
    """Holds a stage back while the next one lags, from the first block on.

    Ray's own policy waits until half of the object store is full. Small blocks never fill it, while the driver keeps
    some 20 kB for each.
    """

    OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0


class _DropBlockStats(ExecutionCallback):
    """Drops the statistics of blocks, which Ray keeps until an execution ends; Varve has its own counters.

    See https://github.com/ray-project/ray/issues/66016.
    """

    _failed = False

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        """Empty the lists of all operators. Ray calls it in its loop, and an exception would end the run."""
        if self._failed:
            return
        try:
            for operator in getattr(executor, "_topology", None) or ():
                for blocks in operator.get_stats().values():
                    blocks.clear()
        except Exception as e:  # noqa: BLE001 (Ray fails the run for any exception of a callback)
            self._failed = True
            logger.warning(
                "statistics of blocks are not dropped, and the driver's memory grows: %s: %s", type(e).__name__, e
            )
