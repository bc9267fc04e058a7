"""A run whose features go to a table of their own, one row per key: the default for Iceberg and Delta."""

from dataclasses import dataclass
from typing import Any

from varve.backfill.diff import DiffRequest, select_rows
from varve.backfill.publish import publish
from varve.backfill.table_run import TableRun
from varve.config.job import Job
from varve.engine.parallel import Spread
from varve.output.part_layout import PartLayout
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage


@dataclass(frozen=True, slots=True)
class SiblingBackfill:
    """See `backfill.Backfill`."""

    run: TableRun

    @property
    def job(self) -> Job:
        """See `Backfill`."""
        return self.run.job

    @property
    def layout(self) -> PartLayout:
        """See `Backfill`."""
        return self.run.layout

    @property
    def is_in_step(self) -> bool:
        """See `Backfill`."""
        return self.run.is_in_step

    @property
    def size_bytes(self) -> int:
        """See `Backfill`."""
        return sum(file.file_bytes for file in self.run.source.files(self.run.version))

    def select(self, storage: Storage, spread: Spread) -> RowSelection:
        """Compare the source with the destination by key and hash of the text, unless an earlier run of the job did."""
        run = self.run
        request = DiffRequest(
            source=run.source,
            version=run.version,
            since=run.since,
            destination=run.destination if run.head else None,
            head=run.head.version if run.head else None,
            key=run.job.source.key or "",
            text_columns=run.job.source.text_columns,
            deletes=run.job.output.deletes,
            kept=run.compared,
        )
        return select_rows(request, storage, spread)

    def publish(self, storage: Storage, parts: PartTable, selection: RowSelection, spread: Spread) -> dict[str, Any]:
        """See `backfill.publish.publish`."""
        return publish(self.run, storage, parts, selection, spread).to_json(self.run)
