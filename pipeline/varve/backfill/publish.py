"""Publishes the parts of a run as files of the feature table, by one commit.

Order: copies of files with stale rows, stage, verification of what readers would see, commit. Another commit in between
makes the copies and the stage again on the new head; the parts stay. Knows nothing of Ray. Invariant: the outcome of
every step is read from the table, so the steps can be repeated by any driver at any time.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from varve.backfill.copies import Replacement, copy_live_rows
from varve.backfill.staged_check import check_staged
from varve.backfill.table_run import TableRun
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import Change, HeadMovedError, NewFile
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 20  # a table with so many commits by others during one publication needs a pause of its writers


@dataclass(frozen=True, slots=True)
class Publication:
    """What readers of the table see from now on.

    Attributes:
        version: of the table that has the run's rows.
        counts: "new", "changed", "unchanged" and "removed" rows of the source.
        num_files: parts and copies that were added.
        num_replaced: files that left the table.
    """

    version: int | None
    counts: dict[str, int]
    num_files: int = 0
    num_replaced: int = 0

    def to_json(self, run: TableRun) -> dict[str, Any]:
        """The record in the manifest."""
        return {
            "address": str(run.destination.address),
            "version": self.version,
            "source": str(run.source.address),
            "source_uuid": run.pin.uuid,
            "source_version": run.version,
            "since": run.since,
            "feature_set": run.feature_set,
            "rows": self.counts,
            "files_added": self.num_files,
            "files_replaced": self.num_replaced,
        }


def publish(run: TableRun, storage: Storage, parts: PartTable, selection: RowSelection, spread: Spread) -> Publication:
    """Make the rows of a run visible in its feature table, unless they are.

    Args:
        run: the run.
        storage: its folder.
        parts: its committed parts, which were verified against the source.
        selection: the rows that it encoded.
        spread: runs work on files in parallel.

    Raises:
        RunError: the staged files differ from the committed ones, or the table's writers left no moment to commit.
    """
    adds = part_files(run, parts, selection)
    for _ in range(_MAX_ATTEMPTS):
        state = run.destination.state(run.feature_set)
        if state and state.run == run.run:
            return Publication(run.destination.pin(None).version, dict(selection.counts))
        head = run.destination.pin(None).version
        replacement = copy_live_rows(
            run.destination, head, run.job.source.key or "", adds, selection, run.layout, storage, spread
        )
        change = Change(head, run.new_state, [*adds, *replacement.adds], replacement.removes, _details(selection, run))
        try:
            return _commit(run, change, replacement, storage, parts, selection, spread)
        except HeadMovedError:
            logger.info("%s: another commit came first; staging again", run.destination.address)
            run.destination.unstage(change)
    msg = f"{run.destination.address}: {_MAX_ATTEMPTS} commits of other writers came first. Run the same command again"
    raise RunError(msg)


def _commit(
    run: TableRun,
    change: Change,
    replacement: Replacement,
    storage: Storage,
    parts: PartTable,
    selection: RowSelection,
    spread: Spread,
) -> Publication:
    staged = run.destination.stage(change) if change.adds or change.removes else None
    if failures := check_staged(run, change, staged, storage, parts, spread):
        run.destination.unstage(change)
        raise RunError(f"{run.destination.address}: not published:\n  " + "\n  ".join(failures))
    version = run.destination.commit(change)
    return Publication(version, dict(selection.counts), len(change.adds), len(replacement.removes))


def part_files(run: TableRun, parts: PartTable, selection: RowSelection) -> list[NewFile]:
    """The parts with rows, as files of the table; each lies in the partition of its source file."""
    partitions = _partitions(run, selection)
    return [
        NewFile(
            f"{run.job.output.path}/{part.name}",
            part.range.num_rows,
            part.file_bytes,
            partitions[part.shard],
            part.key_range,
        )
        for part in parts
        if part.range.num_rows
    ]


def _partitions(run: TableRun, selection: RowSelection) -> Sequence[str]:
    """The partition of each shard."""
    if run.job.output.partition == "none" or not run.pin.partition:
        return ["[]"] * len(selection.files)
    by_path = {file.path: file.partition for file in run.source.files(run.version)}
    return [by_path[file.path] for file in selection.files]


def _details(selection: RowSelection, run: TableRun) -> dict[str, str]:
    counts = {f"varve.rows-{name}": str(count) for name, count in selection.counts.items()}
    return {"varve.source": str(run.source.address), "varve.source-version": str(run.version), **counts}
