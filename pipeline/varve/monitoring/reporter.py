"""Interface through which workers report progress; implemented by the Ray engine (engine/ray_reporter.py)."""

from typing import Any, Protocol

from varve.monitoring.run_counters import Block, Verdict
from varve.ranges import Range

# A part that its worker died of so often goes to a process of its own; a worker that dies even then ends the run.
MAX_DEATHS = 3


class Reporter(Protocol):
    """Whom a worker reports to."""

    def join(self, encoder: dict[str, Any]) -> None:
        """It is ready, and runs like this."""
        ...

    def begin(self, stage: str, rows: Range) -> int:
        """It takes a part; returns how often a worker was lost with it before."""
        ...

    def end(self, stage: str, rows: Range) -> None:
        """It is done with it."""
        ...

    def spend(self, stage: str, seconds: float) -> None:
        """It has worked on a part for so long."""
        ...

    def count(self, block: Block, part: Range, *, wait: bool) -> Verdict:
        """It has done a block of a part; returns the answer to the block before, or with `wait` to this one."""
        ...

    def stopped(self) -> bool:
        """Whether the run was asked to end."""
        ...
