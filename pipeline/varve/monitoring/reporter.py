"""Interface through which workers report progress; the Ray engine implements it (engine/ray_reporter.py)."""

from typing import Any, Protocol

from varve.monitoring.block import Block
from varve.monitoring.run_counters import Verdict
from varve.ranges import Range

# After this many worker deaths a part is encoded in an isolated process; if a worker dies even then, the run fails.
MAX_DEATHS = 3


class Reporter(Protocol):
    """What a worker reports to."""

    def join(self, encoder: dict[str, Any]) -> None:
        """The worker is ready; `encoder` describes how it runs."""
        ...

    def begin(self, stage: str, rows: Range) -> int:
        """The worker starts a part; returns how often a worker died with it before."""
        ...

    def end(self, stage: str, rows: Range) -> None:
        """The worker is done with the part, or gives it back."""
        ...

    def spend(self, stage: str, seconds: float) -> None:
        """The worker spent seconds of work on a part."""
        ...

    def count(self, block: Block, part: Range, *, wait: bool) -> Verdict:
        """A block of a part is encoded; returns the answer to the previous block, or to this one with `wait`."""
        ...

    def stopped(self) -> bool:
        """Whether the run is stopping."""
        ...
