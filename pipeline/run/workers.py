"""What Ray is given to start on the workers: the stages with a model, whose code is imported there and not here.

The driver would wait for that code before the first replica is even asked for.
"""

from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.run.reports import Reports

if TYPE_CHECKING:
    from pipeline.work import Work


class Replica:
    """One encoder on one device."""

    def __init__(self, work: "Work", tell: Reports) -> None:
        """Load the model and report; see pipeline/replica.py."""
        from pipeline import replica  # noqa: PLC0415 (see the top)

        self._replica = replica.Replica(work, tell)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Bring a part's texts to its features."""
        return self._replica(batch)


def tokenize_part(batch: pa.Table, work: "Work", tell: Reports) -> pa.Table:
    """Add the tokens of its blocks to a part on its way to a replica."""
    from pipeline import replica  # noqa: PLC0415 (see the top)

    return replica.tokenize_part(batch, work, tell)
