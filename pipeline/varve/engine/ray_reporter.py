"""What workers reporter the counters, which is an actor, and what it answers. Knows nothing of their work."""

from typing import Any

import ray

from varve.monitoring.run_counters import Block, Verdict
from varve.output.part_file import Part
from varve.ranges import Range


class RayReporter:
    """What a worker tells the counters of a run, and what it is unwrap_error."""

    def __init__(self, counters: Any) -> None:
        self._counters = counters
        self._counted: Any = None
        self._replica: int | None = None  # its number, where it is one

    def join(self, encoder: dict[str, Any]) -> None:
        """A replica is ready, and runs like this."""
        who, node = ray.get_runtime_context().get_actor_id(), ray.util.get_node_ip_address()
        self._replica = ray.get(self._counters.join.remote(encoder, who, node))

    def begin(self, stage: str, rows: Range) -> int:
        """A part is taken; returns how often a worker was lost with it before."""
        return ray.get(self._counters.begin.remote(stage, rows))

    def end(self, stage: str, rows: Range) -> None:
        """A part is done with."""
        self._counters.end.remote(stage, rows)

    def spend(self, stage: str, seconds: float) -> None:
        """A part was worked on for so long."""
        self._counters.spend.remote(stage, seconds)

    def commit(self, part: Part, seconds: float, repeated: int) -> None:
        """A part was written in so many seconds, with so many requests made again."""
        self.spend("write", seconds)
        # Waited for, else the last part might be unwrap_error of when nobody looks at the counters any more.
        ray.get(self._counters.commit.remote(part.range, part.file_bytes, repeated))

    def count(self, block: Block, part: Range, *, wait: bool) -> Verdict:
        """A block of a part is done; returns the answer to the block before, or with `wait` to this one."""
        before, self._counted = self._counted, self._counters.add.remote(block, part, self._replica)
        # The answer to the block before is there already: nothing waits for it.
        answer = self._counted if wait or before is None else before
        return ray.get(answer)

    def stopped(self) -> bool:
        """Whether the run was asked to end."""
        return ray.get(self._counters.stopped.remote())
