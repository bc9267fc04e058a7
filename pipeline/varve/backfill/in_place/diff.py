"""Finds the rows of a table whose features are columns of the same table and are missing or stale.

Knows nothing of models. Invariants: the stored hash of a row's text decides, so no key is needed; files that both
versions have are not opened; the objects that it writes are a function of the version and the columns.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import Table, TableFile, VersionExpiredError
from varve.lake.text_hash import HASH_BYTES, HASH_TYPE, hash_texts
from varve.source.row_selection import RowSelection, SelectedFile, encode_positions, rows_name
from varve.storage.object_store import Storage

_COUNTS = ("new", "changed", "unchanged", "removed")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Compares the texts of files with the stored hashes. Picklable."""

    table: Table
    version: int
    text_columns: tuple[str, ...]
    hash_column: str
    storage: Storage
    prefix: str

    def compare(self, file: TableFile) -> tuple[str, SelectedFile | None, Mapping[str, int]]:
        """(path, the file with its selected rows, counts of rows); positions are stored."""
        positions, counts, start = [], Counter[str](), 0
        for table in self.table.read(self.version, file, [*self.text_columns, self.hash_column]):
            is_new, is_changed = self._stale(table)
            positions.append(start + np.flatnonzero(is_new | is_changed))
            start += len(table)
            counts.update(new=int(is_new.sum()), changed=int(is_changed.sum()))
        counts["unchanged"] = start - counts["new"] - counts["changed"]
        selected = np.concatenate(positions) if positions else np.empty(0, np.int64)
        return file.path, self._select(file, selected, start), counts

    def _stale(self, table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(R,) whether rows have no hash, (R,) whether they have another one than their text."""
        stored = table[self.hash_column].combine_chunks()
        is_new = stored.is_null().to_numpy(zero_copy_only=False)
        hashes = hash_texts([table[name] for name in self.text_columns])
        return is_new, ~is_new & (_values(stored) != _values(hashes)).any(axis=1)

    def _select(self, file: TableFile, positions: NDArray[np.int64], rows: int) -> SelectedFile | None:
        if len(positions) == rows:
            return SelectedFile(file.path, file.identity, rows) if rows else None
        if not len(positions):
            return None
        content, sha256 = encode_positions(positions)
        self.storage.create(_file_name(self.prefix, file.path), content)
        return SelectedFile(file.path, file.identity, len(positions), is_partial=True, sha256=sha256)


def _values(hashes: pa.Array) -> NDArray[np.uint64]:
    """(R, 2) the bytes of each hash; any bytes for null."""
    fixed = hashes.cast(HASH_TYPE).fill_null(bytes(HASH_BYTES))
    start = fixed.offset * HASH_BYTES
    content = np.frombuffer(fixed.buffers()[1], np.uint8)[start : start + len(fixed) * HASH_BYTES]
    return content.view(np.uint64).reshape(-1, 2)


def select_in_place(
    source: Table,
    version: int,
    since: int | None,
    hash_column: str,
    text_columns: tuple[str, ...],
    storage: Storage,
    spread: Spread,
) -> RowSelection:
    """Select the rows whose stored hash is null or is not that of their text. It is not saved yet.

    Args:
        source: table that has its features as columns.
        version: that is pinned.
        since: version with which the features are in step; None, or one that is gone: all files are compared.
        hash_column: of the features; if the version has no such column, all rows are selected and nothing is read.
        text_columns: one or two.
        storage: of the run.
        spread: in parallel.

    Raises:
        VersionExpiredError: the pinned version, or files of it, are gone.
        RunError: a file cannot be read, or the store failed.
    """
    prefix = f"_varve/diff/{version}"
    files = source.files(version)
    changed = _changed_files(source, files, since)
    counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    counts["unchanged"] = sum(file.num_rows or 0 for file in files if file.path not in changed)
    if hash_column not in source.pin(version).schema.names:
        everything = {file.path: SelectedFile(file.path, file.identity, file.num_rows) for file in files}
        selected = {path: file for path, file in everything.items() if file.num_rows != 0}
        return _selection(storage, prefix, selected, {**counts, "unchanged": 0, "new": _total(files)})
    comparison = _Comparison(source, version, text_columns, hash_column, storage, prefix)
    selected = {}
    for path, each, rows in spread(comparison.compare, [file for file in files if file.path in changed]):
        counts = {name: counts[name] + rows.get(name, 0) for name in counts}
        selected |= {path: each} if each else {}
    selection = _selection(storage, prefix, selected, counts)
    partial_files = [(shard, file.path) for shard, file in enumerate(selection.files) if file.is_partial]
    for _ in spread(partial(_number_positions, storage, prefix), partial_files):
        pass
    return selection


def _changed_files(source: Table, files: Sequence[TableFile], since: int | None) -> frozenset[str]:
    """Paths of the files that `since` does not have, or has with other rows."""
    try:
        known = {file.path: file.identity for file in source.files(since)} if since is not None else {}
    except VersionExpiredError:
        known = {}
    return frozenset(file.path for file in files if known.get(file.path) != file.identity)


def _total(files: Sequence[TableFile]) -> int:
    return sum(file.num_rows or 0 for file in files)


def _selection(
    storage: Storage, prefix: str, selected: Mapping[str, SelectedFile], counts: Mapping[str, int]
) -> RowSelection:
    return RowSelection(storage, prefix, tuple(selected[path] for path in sorted(selected)), counts)


def _file_name(prefix: str, path: str) -> str:
    """Where the positions of a file are kept until the numbers of shards are known."""
    return f"{prefix}/files/{hashlib.sha256(path.encode()).hexdigest()}.parquet"


def _number_positions(storage: Storage, prefix: str, item: tuple[int, str]) -> None:
    """Store the positions of a file under the number of its shard."""
    shard, path = item
    name = _file_name(prefix, path)
    if (content := storage.read(name)) is None:
        if storage.read(rows_name(prefix, shard)) is not None:
            return  # another driver of this run was faster
        msg = f"{storage.uri}/{name} is missing: run the same command again"
        raise RunError(msg)
    storage.create(rows_name(prefix, shard), content)
    storage.delete([name])
