"""A source that is pinned and opened: its shards, read as Arrow tables and cut along the grid of parts.

Knows nothing of models, tokens or the output, nor how a source is found. Invariants: shards have the order that
`datasets` gives them, and a row's number is its position in its shard, whatever is skipped; a table that `read_parts`
yields is exactly one cell of the grid, read from the file version that the job was planned for.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from varve.errors import RunError
from varve.ranges import Missing
from varve.source.error_messages import advice_on, describe_error, is_too_large
from varve.source.hive_columns import HiveReader
from varve.source.readers import READ_ROWS, Reader
from varve.source.workarounds import ending_calmly
from varve.storage.fsspec_files import file_version, use_options


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known about the shards before they are read."""

    files: tuple[int, ...] | None  # index of each shard's file; None if only `datasets` knows
    rows: tuple[int, ...] | None  # of each shard; None if only reading tells
    # Of each shard as Parquet's footers count them, uncompressed, for forecasts only; None if they are not known.
    text_bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened source. Safe to pickle: workers read from it without the job file or a branch name."""

    reader: Reader
    num_shards: int  # pieces that can be read independently
    files: tuple[str, ...]  # URIs, in order
    commit: str | None  # of a dataset on the Hub
    schema: pa.Schema  # the columns that are read
    shards: Shards
    versions: tuple[str, ...] | None  # of the files when the job was planned; None if a commit pins them
    storage_options: dict[str, Any]  # of the files' file system
    notes: tuple[str, ...]  # remarks on the source for the user

    @property
    def shard_rows(self) -> tuple[int, ...] | None:
        """Rows of each shard; None if only reading tells."""
        return self.shards.rows

    @property
    def names(self) -> list[str]:
        """The files, relative to their common folder, so the names stay the same when that folder moves."""
        parents = [posixpath.dirname(uri).split("/") for uri in self.files]
        shared = posixpath.commonprefix(parents)
        if isinstance(self.reader, HiveReader):
            # Names of folders are values of columns, also of folders that all files are in.
            shared = list(takewhile(lambda folder: "=" not in folder, shared))
        return ["/".join(uri.split("/")[len(shared) :]) for uri in self.files]

    @property
    def identity(self) -> str:
        """A hash of the commit, or of the names and versions of the files."""
        return source_identity(self.commit, self.num_shards, self.names, self.versions)

    def file_of(self, shard: int) -> str:
        """The file of a shard, for messages; the first of several if only `datasets` knows which."""
        return f"{self.files[0]}, ..." if self.shards.files is None else self.files[self.shards.files[shard]]

    def check(self, shard: int) -> None:
        """Check that a shard's file is still the version that the job was planned for.

        Raises:
            RunError: the file is gone or was replaced, or its file system does not answer.
        """
        if self.versions is None or self.shards.files is None:
            return
        file = self.shards.files[shard]
        uri, planned = self.files[file], self.versions[file]
        try:
            current = file_version(uri, fresh=True)
        except FileNotFoundError:
            current = "gone"
        except Exception as e:  # each file system raises its own exceptions
            msg = (
                f"shard {shard} ({uri}): cannot check whether the file changed since the run was planned: "
                f"{describe_error(e)}. {advice_on(e)}, then run the same command to resume"
            )
            raise RunError(msg) from e
        if current != planned:
            msg = (
                f"shard {shard} ({uri}) has changed since the run was planned: it was {planned}, it is {current}. "
                "Restore the file, or start a new run with another output.path"
            )
            raise RunError(msg)

    def read(self, shard: int, first: int = 0) -> Iterator[pa.Table]:
        """The rows of one shard from row `first` on, in order, in tables of 1,024 rows; the last is shorter.

        Raises:
            RunError: the shard cannot be read, or its file has changed.
        """
        row = first
        use_options(self.files[0], self.storage_options)
        try:
            with ending_calmly():
                for table in _rebatch(self.reader.read(shard, first), READ_ROWS):
                    yield _cast(table, self.schema)
                    row += len(table)
        except Exception as e:  # each file system and format raises its own exceptions
            self.check(shard)
            msg = f"shard {shard} ({self.file_of(shard)}) cannot be read after row {row}: {describe_error(e)}"
            if isinstance(e, (TypeError, pa.ArrowInvalid)) and not is_too_large(e):
                msg += ". If a column's type differs from that in the first rows, name it in source.types"
            elif isinstance(e, UnicodeError):
                msg += f". {advice_on(e)}"
            raise RunError(msg) from e

    def read_parts(self, shard: int, rows_per_part: int, missing: Missing) -> Iterator[tuple[int, pa.Table]]:
        """(first row, table) of each missing cell of the grid. The last cell is shorter and may be empty.

        Raises:
            RunError: the shard cannot be read, or its file has changed; no row of the new file is yielded.
        """
        start, is_whole = missing.first, True
        for table in _rebatch(self.read(shard, start), rows_per_part):
            if missing.wants(start):
                self.check(shard)
                yield start, table
            start += rows_per_part
            is_whole = len(table) == rows_per_part
            if is_whole and missing.is_past(start):
                return
        if is_whole and missing.wants(start):
            self.check(shard)
            yield start, self.schema.empty_table()


def _rebatch(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of a fixed number of rows; the last has fewer."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += len(table)
        while num_waiting >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, num_waiting = [joined.slice(rows)], num_waiting - rows
    if num_waiting:
        yield pa.concat_tables(waiting)


def source_identity(commit: str | None, num_shards: int, names: Sequence[str], versions: Sequence[str] | None) -> str:
    """A hash of a source's commit, or of the names and versions of its files."""
    content: list[Any] = [commit, num_shards]
    if versions is not None:
        content += map(list, zip(names, versions, strict=True))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.table([_cast_column(table[field.name], field.type) for field in schema], schema=schema)


def _cast_column(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Cast to a type. Texts of numbers may have whitespace around them and a leading plus, as readers of CSV allow."""
    if pa.types.is_string(column.type) and not (pa.types.is_string(target) or pa.types.is_large_string(target)):
        trimmed = pc.utf8_trim_whitespace(column)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
        column = pc.replace_substring_regex(trimmed, r"^\+", "")  # pyright: ignore[reportAttributeAccessIssue] (likewise)
    # Arrow's cast of a slice of lists of nulls to the same type gives lists of a wrong length.
    return column if column.type == target else column.cast(target)
