"""How workers report to the counters of a run, which are a Ray actor. Knows nothing of the work."""

from typing import Any

import ray

from varve.monitoring.block import Block
from varve.monitoring.run_counters import Verdict
from varve.output.part_file import Part
from varve.ranges import Range


class RayReporter:
    """Sends reports to the counters' actor; implements monitoring.reporter.Reporter."""

    def __init__(self, counters: Any) -> None:
        self._counters = counters
        self._previous: Any = None  # answer to the last block's report
        self._replica: int | None = None  # number of the replica, once it joined

    def join(self, encoder: dict[str, Any]) -> None:
        """Report that a replica is ready, with the description of its encoder."""
        actor, node = ray.get_runtime_context().get_actor_id(), ray.util.get_node_ip_address()
        self._replica = ray.get(self._counters.join.remote(encoder, actor, node))

    def begin(self, stage: str, rows: Range) -> int:
        """Report the start of a part; returns how often a worker died with it before."""
        return ray.get(self._counters.begin.remote(stage, rows, self._replica))

    def end(self, stage: str, rows: Range) -> None:
        """Report the end of a part."""
        self._counters.end.remote(stage, rows)

    def spend(self, stage: str, seconds: float) -> None:
        """Report seconds of work on a part."""
        self._counters.spend.remote(stage, seconds)

    def commit(self, part: Part, seconds: float, retries: int) -> None:
        """Report a committed part, the seconds of its write and the repeated requests."""
        self.spend("write", seconds)
        # Waited for: otherwise the last part could arrive after the driver's last snapshot.
        ray.get(self._counters.commit.remote(part.range, part.file_bytes, retries))

    def count(self, block: Block, part: Range, *, wait: bool) -> Verdict:
        """Report an encoded block; returns the answer to the previous block, or to this one with `wait`."""
        previous, self._previous = self._previous, self._counters.add.remote(block, part, self._replica)
        # The answer to the previous block is there already, so encoding does not wait.
        return ray.get(self._previous if wait or previous is None else previous)

    def stopped(self) -> bool:
        """Whether the run is stopping."""
        return ray.get(self._counters.stopped.remote())
