"""Finds out which rows of a source table a run encodes, and which keys left it.

The file lists of two versions bound what is read; key and hash of the text decide what is encoded, so a compaction
costs reading and no encoding. Knows nothing of formats, models or the commit. Invariants: the same request writes the
same objects, so drivers that work at once end with one selection; the selection is written last; the driver holds
numbers about files, no rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from varve.backfill.keys.bucket_join import BucketJoin, JoinedBucket, RepeatSearch
from varve.backfill.keys.key_buckets import Buckets, count_buckets, write_buckets
from varve.backfill.keys.key_columns import Side, comparable
from varve.backfill.keys.key_errors import check_nulls, check_repeats
from varve.backfill.keys.key_ranges import KeyRanges
from varve.backfill.keys.selected_files import gather_files, whole_files
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import Table, TableFile, VersionExpiredError
from varve.source.row_selection import RowSelection, SelectedFile
from varve.storage.object_store import Storage

_FOLDER = "_varve/diff"
_COUNTS = ("new", "changed", "unchanged", "removed")


@dataclass(frozen=True, slots=True)
class DiffRequest:
    """What is compared with what.

    Attributes:
        source: table with the texts.
        version: of the source, pinned.
        since: version of the source that the destination is in step with; None: all rows of both tables are compared.
        destination: table with key and hash of each row that has features; None: there is none yet.
        head: its version; None: it has none.
        key: name of the key column in both tables.
        text_columns: whose hash decides whether a row has changed.
        deletes: whether keys that left the source leave the features.
        kept: kept columns in both tables, whose change makes a row a changed one.
    """

    source: Table
    version: int | None
    since: int | None
    destination: Table | None
    head: int | None
    key: str
    text_columns: tuple[str, ...]
    deletes: Literal["follow", "keep"]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Files:
    """Which files are read.

    Attributes:
        added: files of the source whose rows are compared.
        removed: files of `since` that the source has no more; None: `since` is not used.
        unread: files of the source that `since` has too.
        destination: all files of the destination's head.
    """

    added: list[TableFile]
    removed: list[TableFile] | None
    unread: list[TableFile]
    destination: list[TableFile]


def select_rows(request: DiffRequest, storage: Storage, spread: Spread) -> RowSelection:
    """Compare the tables and store the selection; a stored selection is returned as it is.

    Without a destination, or if it has no rows, no text is read: the keys prove that each row has one of its own, and
    all files are selected whole. If `since`, or a file of it, was removed by the table's maintenance, all rows of both
    tables are compared. Rows of unread files are counted as unchanged if their number is known. Keys that left the
    source are counted as removed, and written as `gone-BBBBB.parquet` below the selection's prefix, if deletes follow.

    Args:
        request: what is compared.
        storage: of the run.
        spread: runs the tasks.

    Raises:
        JobError: a key is null, has several rows or a type that cannot be one.
        VersionExpiredError: the source's version or the destination's head is gone.
        RunError: a table or the store failed.
    """
    stored = RowSelection.load(storage)
    if stored is None:
        try:
            stored = _Comparison(request, storage, spread).run().save()
        except RunError:
            # Another driver may have finished the same selection and deleted the buckets.
            if (stored := RowSelection.load(storage)) is None:
                raise
    storage.delete([each.name for each in list(storage.list(f"{stored.prefix}/buckets"))])
    return stored


@dataclass(frozen=True, slots=True)
class _Comparison:
    request: DiffRequest
    storage: Storage
    spread: Spread

    def run(self) -> RowSelection:
        if self.request.since is not None:
            try:
                return self._select(self._list_files(self.request.since))
            except VersionExpiredError:
                pass  # if it was the pinned version that is gone, this is raised again
        return self._select(self._list_files(None))

    def _select(self, files: _Files) -> RowSelection:
        if not (files.added or files.removed or files.removed is None):
            return self._selection(f"{_FOLDER}/{self.request.head}", files, (), dict.fromkeys(_COUNTS, 0))
        return self._select_changed(files) if files.destination else self._select_all(files)

    def _list_files(self, since: int | None) -> _Files:
        """Split the source's files; since None: all of them are compared."""
        request = self.request
        files = request.source.files(request.version, request.key)
        table = request.destination
        destination = [] if table is None or request.head is None else table.files(request.head, request.key)
        if since is None:
            return _Files(files, None, [], destination)
        before = request.source.files(since, request.key)
        old, new = ({(each.path, each.identity) for each in listed} for listed in (before, files))
        return _Files(
            [each for each in files if (each.path, each.identity) not in old],
            [each for each in before if (each.path, each.identity) not in new],
            [each for each in files if (each.path, each.identity) in old],
            destination,
        )

    def _select_all(self, files: _Files) -> RowSelection:
        """All rows of the added files, whose keys alone are read."""
        prefix = f"{_FOLDER}/{'none' if self.request.head is None else self.request.head}"
        side = Side("added", self.request.source, self.request.version, self.request.key, is_located=True)
        num_buckets = count_buckets(files.added)
        added = self._write(side, files.added, num_buckets, prefix)
        self._check_nulls(files, added)
        repeats = list(self.spread(RepeatSearch(self.storage, added), range(num_buckets)))
        check_repeats(self.request.key, self.request.source.address, files.added, repeats)
        selected = whole_files(files.added, added.files)
        counts = dict.fromkeys(_COUNTS, 0) | {"new": sum(each.num_rows or 0 for each in selected)}
        return self._selection(prefix, files, selected, counts)

    def _select_changed(self, files: _Files) -> RowSelection:
        """The rows whose hash the destination does not have."""
        request, is_whole = self.request, files.removed is None
        prefix = f"{_FOLDER}/{request.head}{'-all' if is_whole else ''}"
        follows = request.deletes == "follow"
        near = KeyRanges(each.key_range for each in files.added)
        compared = [each for each in files.destination if (is_whole and follows) or near.overlap(each.key_range)]
        num_buckets = count_buckets([*files.added, *(files.removed or ()), *compared])
        removed = None
        if files.removed is not None:
            side = Side("removed", request.source, request.since, request.key, may_expire=True)
            removed = self._write(side, files.removed, num_buckets, prefix)
            if removed.is_expired:
                msg = f"{request.source.address}: files of version {request.since} are gone"
                raise VersionExpiredError(msg)
        kept = self._kept()
        side = Side(
            "added", request.source, request.version, request.key, request.text_columns, kept=kept, is_located=True
        )
        added = self._write(side, files.added, num_buckets, prefix)
        self._check_nulls(files, added)
        assert request.destination is not None
        side = Side("destination", request.destination, request.head, request.key, has_hash=True, kept=kept)
        destination = self._write(side, compared, num_buckets, prefix)
        gone_from = ("destination" if is_whole else "removed") if follows else None
        temporary = _temporary(prefix)
        join = BucketJoin(self.storage, prefix, temporary, added, removed, destination, gone_from)
        joined = sorted(self.spread(join, range(num_buckets)), key=lambda each: each.bucket)
        self._check_repeats(files, added, joined, prefix)
        selected = gather_files(files.added, added.files, joined, self.storage, prefix, self.spread)
        counts = {name: sum(each.counts[name] for each in joined) for name in _COUNTS}
        return self._selection(prefix, files, selected, counts)

    def _kept(self) -> pa.Schema:
        """The kept columns that are compared, with the types of the destination."""
        if not self.request.kept or self.request.destination is None:
            return pa.schema([])
        schema = self.request.destination.pin(self.request.head).schema
        return comparable(pa.schema([schema.field(name) for name in self.request.kept if name in schema.names]))

    def _write(self, side: Side, files: Sequence[TableFile], num_buckets: int, prefix: str) -> Buckets:
        return write_buckets(side, files, num_buckets, self.storage, _temporary(prefix), self.spread)

    def _check_nulls(self, files: _Files, added: Buckets) -> None:
        check_nulls(self.request.key, self.request.source.address, files.added, added.files)

    def _check_repeats(self, files: _Files, added: Buckets, joined: list[JoinedBucket], prefix: str) -> None:
        """Refuse keys of several rows; unread files are searched for keys that the destination has unexpectedly."""
        request = self.request
        check_repeats(request.key, request.source.address, files.added, [each.repeats for each in joined])
        suspected = [each.bucket for each in joined if each.num_suspects]
        if not suspected:
            return
        near = KeyRanges(each.key_range for each in files.added)
        unread = [each for each in files.unread if near.overlap(each.key_range)]
        side = Side("unread", request.source, request.version, request.key, is_located=True)
        others = self._write(side, unread, len(joined), prefix)
        repeats = list(self.spread(RepeatSearch(self.storage, added, others), suspected))
        check_repeats(request.key, request.source.address, [*files.added, *unread], repeats)

    def _selection(
        self, prefix: str, files: _Files, selected: tuple[SelectedFile, ...], counts: dict[str, int]
    ) -> RowSelection:
        unread = [each.num_rows for each in files.unread]
        known = 0 if None in unread else sum(each or 0 for each in unread)
        return RowSelection(self.storage, prefix, selected, counts | {"unchanged": counts["unchanged"] + known})


def _temporary(prefix: str) -> str:
    return f"{prefix}/buckets"
