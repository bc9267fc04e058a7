"""How often Ray Data looks whether something has happened: less often, the less happens.

It looks ten times a second at all stages, which takes two milliseconds each time from what encodes beside it; a part
takes a CPU seconds (infra/decisions/0005). Like bounds.py this stands on modules of Ray's own and knows nothing of what
flows. Invariant: what has happened is seen later by at most a tenth of the time since something was last seen, which
the next part that waits at a replica covers, and by half a hundredth of the run's time.
"""

import time
from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

_MOST_S = 0.4
_OF_QUIET = 1 / 10
_OF_RUN = 1 / 200


def pace(context: DataContext) -> None:
    """Look less often while nothing happens, in the flows of this context."""
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Pace]


class _Pace(ExecutionCallback):
    """Rests between two steps of the loop."""

    def __init__(self) -> None:
        self._began = self._moved_at = time.monotonic()
        self._seen = 0

    def on_execution_step(self, executor: "StreamingExecutor") -> None:
        """Called by the loop, after what has happened was passed on and new work was given out."""
        now = time.monotonic()
        seen = sum(
            operator.metrics.num_task_outputs_generated for operator in getattr(executor, "_topology", None) or ()
        )
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        time.sleep(min(_MOST_S, (now - self._moved_at) * _OF_QUIET, (now - self._began) * _OF_RUN))
