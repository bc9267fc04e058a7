"""The shards of a Hugging Face dataset, read as Arrow tables of the needed columns, cut along the grid of parts.

Knows nothing of models, tokens or the output's form, nor how a source is found. Invariants: shards have the order that
`datasets` gives them, and a row's number is its position in its shard, whatever is skipped; a table that `read_parts`
yields is exactly one cell of the grid, and of the file that the job was planned for; workers get a dataset that is
already pinned, so no branch name reaches them.
"""

import atexit
import hashlib
import json
import posixpath
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, config

from pipeline.errors import RunError
from pipeline.ranges import Missing
from pipeline.source.failures import advise, as_job_errors, words
from pipeline.storage.files import file_version, open_file, use_options

READ_ROWS = 1024
# What a read that nobody waits for any more may still take.
_LAST_READS_S = 0.5
_AT_ONCE = 32


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
                        conformed = table.select(self.schema.names).cast(self.schema).slice(before)
                        before = max(0, before - table.num_rows)
                        if conformed.num_rows:
                            yield conformed
                            row += conformed.num_rows
        except Exception as e:  # every file system and builder has errors of its own
            self.check(shard)
            msg = f"shard {shard} ({self.name(shard)}) can't be read after row {row}: {words(e)}"
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


@contextmanager
def streams_without_torch() -> Iterator[None]:
    """Let `datasets` make its streams without torch: of a stream of torch's kind, every reader would import it.

    That takes a second and 200 MB of each process. Elsewhere in a program `datasets` stays what it is.
    """
    before = config.TORCH_AVAILABLE
    config.TORCH_AVAILABLE = False
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = before


@contextmanager
def ending_calmly() -> Iterator[None]:
    """Give Arrow's reading threads a moment after what is read inside, if the interpreter goes down so soon.

    They hold Python files; one that outlives the interpreter aborts the process, whatever its exit code was to be.
    Remove when apache/arrow#45214 is closed.
    """
    _end_later()
    try:
        yield
    finally:
        _end_later()


def _end_later() -> None:
    atexit.unregister(_wait_until)
    atexit.register(_wait_until, time.monotonic() + _LAST_READS_S)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def row_groups(files: tuple[str, ...]) -> list[list[int]]:
    """Rows of each row group of each Parquet file, from the footers.

    Raises:
        JobError: a file can't be read.
    """

    def count(uri: str) -> list[int]:
        with as_job_errors(f"source: {uri} can't be read as Parquet"), open_file(uri) as file:
            footer = pq.read_metadata(file)
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        return list(threads.map(count, files))


def versions(files: tuple[str, ...]) -> tuple[str, ...]:
    """What changes when a file is replaced, of each file; empty where its file system does not say.

    Raises:
        JobError: a file is gone or can't be asked about.
    """

    def ask(uri: str) -> str:
        with as_job_errors(f"source: {uri} can't be looked at"):
            return file_version(uri)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        return tuple(threads.map(ask, files))
