"""A run whose features become columns of the table that has the texts: Lance, and others on request."""

from dataclasses import dataclass
from typing import Any

from varve.backfill.in_place.diff import select_in_place
from varve.backfill.in_place.run import InPlaceRun
from varve.config.job import Job
from varve.engine.parallel import Spread
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage


@dataclass(frozen=True, slots=True)
class InPlaceBackfill:
    """See `backfill.Backfill`."""

    run: InPlaceRun

    @property
    def job(self) -> Job:
        """See `Backfill`."""
        return self.run.job

    @property
    def layout(self) -> None:
        """None: parts are copied into column files."""
        return

    @property
    def is_in_step(self) -> bool:
        """See `Backfill`."""
        run = self.run
        return run.state is not None and run.state.run == run.run

    @property
    def size_bytes(self) -> int:
        """See `Backfill`."""
        return sum(file.file_bytes for file in self.run.columns.table.files(self.run.version))

    def select(self, storage: Storage, spread: Spread) -> RowSelection:
        """Compare the stored hashes with those of the texts, unless an earlier run of the job did."""
        run = self.run
        if stored := RowSelection.load(storage):
            return stored
        columns = run.columns
        return select_in_place(
            columns.table, run.version, run.since, columns.own.hash, columns.text_columns, storage, spread
        ).save()

    def publish(self, storage: Storage, parts: PartTable, selection: RowSelection, spread: Spread) -> dict[str, Any]:
        """Commit the columns; see `LanceColumns.publish` and `RewrittenColumns.publish`."""
        run, columns = self.run, self.run.columns
        version = columns.publish(storage, parts, selection, run.version, run.run, spread)
        return {
            "address": str(columns.table.address),
            "version": version,
            "source": str(columns.table.address),
            "source_uuid": run.pin.uuid,
            "source_version": run.version,
            "since": run.since,
            "feature_set": columns.feature_set,
            "rows": dict(selection.counts),
            "files_added": len(selection.files),
            "files_replaced": 0,
        }
