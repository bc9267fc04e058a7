"""What the driver needs of a run between tables, whatever their formats."""

from typing import Any, Protocol

from varve.config.job import Job
from varve.engine.parallel import Spread
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage


class Backfill(Protocol):
    """A run from a table to a table."""

    @property
    def job(self) -> Job:
        """The job with all that is pinned: the source's version, and the run's folder as output.path."""
        ...

    @property
    def layout(self) -> PartLayout | None:
        """Of the part files; None for Varve's own form."""
        ...

    @property
    def is_in_step(self) -> bool:
        """Whether this run is published already."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the source's files, by which the driver chooses where the rows are compared."""
        ...

    def select(self, storage: Storage, spread: Spread) -> RowSelection:
        """Find the rows that must be encoded.

        Args:
            storage: of the run's folder, or of another one for a run that only counts.
            spread: runs work on files in parallel.

        Raises:
            JobError: the key is null or not unique.
            RunError: a file cannot be read.
        """
        ...

    def publish(self, storage: Storage, parts: PartTable, selection: RowSelection, spread: Spread) -> dict[str, Any]:
        """Make the rows visible to readers of the table, unless they are; returns the record for the manifest.

        Raises:
            RunError: it was not published.
        """
        ...
