"""The shards of a Hugging Face dataset, read as Arrow tables of the needed columns, cut along the grid of parts.

Knows nothing of models, tokens or the output's form, nor how a source is found. Invariants: shards have the order that
`datasets` gives them, and a row's number is its position in its shard, whatever is skipped; a table that `read_parts`
yields is exactly one cell of the grid, and of the file that the job was planned for; workers get a dataset that is
already pinned, so no branch name reaches them.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from datasets import IterableDataset
from datasets.table import CastError

from varve.errors import RunError
from varve.ranges import Missing
from varve.source.error_messages import advise, words
from varve.source.file_metadata import row_groups
from varve.source.workarounds import ending_calmly
from varve.storage.fsspec_files import file_version, use_options

READ_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known of the shards without reading them."""

    files: tuple[int, ...] | None  # index of the file that each shard is of; None where only `datasets` knows
    rows: tuple[int, ...] | None  # of each shard


@dataclass(frozen=True, slots=True)
class Dataset:
    """A source that is pinned, opened and looked at: what reading its shards takes."""

    stream: IterableDataset
    files: tuple[str, ...]  # URIs, in order
    commit: str | None  # of a hub id
    schema: pa.Schema  # the columns that are read
    shards: Shards
    versions: tuple[str, ...] | None  # of the files when the job was planned; None for those that a commit pins
    storage_options: dict[str, Any]  # of the files' file system

    @property
    def shard_rows(self) -> tuple[int, ...] | None:
        """Rows of each shard, where the source says without being read."""
        return self.shards.rows

    @property
    def names(self) -> list[str]:
        """The files below the folder that they have in common, so that moving that folder changes nothing."""
        parents = [posixpath.dirname(uri).split("/") for uri in self.files]
        shared = posixpath.commonprefix(parents)
        return ["/".join(uri.split("/")[len(shared) :]) for uri in self.files]

    @property
    def identity(self) -> str:
        """A hash that changes when the files do: their names and versions, or the commit that pins them."""
        seen: list[Any] = [self.commit, self.num_shards]
        if self.versions is not None:
            seen += map(list, zip(self.names, self.versions, strict=True))
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    @property
    def num_shards(self) -> int:
        """Independently readable pieces."""
        return self.stream.num_shards

    def name(self, shard: int) -> str:
        """The shard for messages: its file, where that is known."""
        return f"{self.files[0]} and on" if self.shards.files is None else self.files[self.shards.files[shard]]

    def check(self, shard: int) -> None:
        """Ask the store whether a shard's file is still the one that the job was planned for.

        Raises:
            RunError: it is gone, another is there now, or the store can't be asked.
        """
        if self.versions is None or self.shards.files is None:
            return
        file = self.shards.files[shard]
        uri, then = self.files[file], self.versions[file]
        try:
            now = file_version(uri, fresh=True)
        except FileNotFoundError:
            now = "gone"
        except Exception as e:  # every file system has errors of its own
            msg = (
                f"shard {shard} ({uri}) can't be asked whether it is still what the run was planned for: {words(e)}. "
                f"{advise(e)}: the same command goes on from there"
            )
            raise RunError(msg) from e
        if now != then:
            msg = (
                f"shard {shard} ({uri}) has changed since the run was planned: it was {then}, it is {now}. "
                "Restore it, or start anew with another output.path"
            )
            raise RunError(msg)

    def read(self, shard: int, first: int = 0) -> Iterator[pa.Table]:
        """The rows of one shard from row `first` on, in order, in tables of any size.

        Raises:
            RunError: the shard can't be read.
        """
        row = first
        use_options(self.files[0], self.storage_options)
        try:
            with ending_calmly():
                for start, piece in self._pieces(shard, first):
                    before = max(0, first - start)
                    for table in cast("Iterator[pa.Table]", piece.iter(READ_ROWS)):
                        conformed = fit(table, self.schema).slice(before)
                        before = max(0, before - table.num_rows)
                        if conformed.num_rows:
                            yield conformed
                            row += conformed.num_rows
        except Exception as e:  # every file system and builder has errors of its own
            self.check(shard)
            msg = f"shard {shard} ({self.name(shard)}) can't be read after row {row}: {words(e)}"
            if isinstance(e, (TypeError, pa.ArrowInvalid, CastError)):
                msg += ". If a column is not of the type that first rows show, name it in source.types"
            elif isinstance(e, UnicodeError):
                msg += f". {advise(e)}"
            raise RunError(msg) from e

    def _pieces(self, shard: int, first: int) -> Iterator[tuple[int, IterableDataset]]:
        """(number of its first row, piece) of a shard; row groups that end before row `first` are never fetched."""
        whole = self.stream.shard(self.num_shards, shard)
        rows = row_groups((self.name(shard),))[0] if first and self.shards.rows and self.shards.files else []
        finer = whole.reshard() if len(rows) > 1 else whole
        if finer.num_shards != len(rows):
            yield 0, whole.with_format("arrow")
            return
        for group, start in enumerate(accumulate(rows[:-1], initial=0)):
            if start + rows[group] > first:
                yield start, finer.shard(len(rows), group).with_format("arrow")

    def read_parts(self, shard: int, rows_per_part: int, missing: Missing) -> Iterator[tuple[int, pa.Table]]:
        """(first row, table) for each missing cell of the grid; the last cell is short, and may be empty.

        Raises:
            RunError: the shard can't be read, or its file has changed; nothing of the new one was given out.
        """
        start = missing.first
        waiting: list[pa.Table] = []
        num_waiting = 0
        for table in self.read(shard, start):
            waiting.append(table)
            num_waiting += table.num_rows
            while num_waiting >= rows_per_part:
                rows = pa.concat_tables(waiting)
                if missing.wants(start):
                    self.check(shard)
                    yield start, rows.slice(0, rows_per_part)
                start += rows_per_part
                waiting, num_waiting = [rows.slice(rows_per_part)], num_waiting - rows_per_part
                if missing.is_past(start):
                    return
        if missing.wants(start):
            self.check(shard)
            yield start, pa.concat_tables(waiting) if waiting else self.schema.empty_table()


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its types.

    Numbers that come as text may have blanks around them and a plus before them, as every reader of CSV allows.

    Raises:
        pa.ArrowInvalid: a value does not fit its column's type.
    """
    return pa.table([_cast(table[field.name], field.type) for field in schema], schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_string(column.type) and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        trimmed = pc.utf8_trim_whitespace(column)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
        column = pc.replace_substring_regex(trimmed, r"^\+", "")  # pyright: ignore[reportAttributeAccessIssue]
    return column.cast(kind)
