"""Readers of shards: for Parquet, for CSV and JSON, and for any other stream of `datasets`.

Files of one source may differ. The readers of files take only the needed columns, cast them, and fill a missing column
with nulls, where `datasets` refuses the file. Shards have the order of `datasets`. Knows nothing of the grid of parts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from datasets import Features, IterableDataset, StreamingDownloadManager
from datasets.table import table_cast
from datasets.utils.file_utils import xopen

from varve.source.file_columns import check_present, check_unique
from varve.source.workarounds import streams_without_torch
from varve.storage.fsspec_files import escape

READ_ROWS = 1024


@dataclass(frozen=True, slots=True)
class StreamReader:
    """Reads a source as `datasets` streams it; rows before the first are read and dropped."""

    stream: IterableDataset

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The rows of a shard from row `first` on, in tables of any size."""
        with streams_without_torch():
            stream = self.stream.shard(self.stream.num_shards, shard).with_format("arrow")
        return _skip_rows(cast("Iterator[pa.Table]", stream.iter(READ_ROWS)), first)


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads CSV or JSON files, one per shard; rows before the first are read and dropped."""

    files: tuple[str, ...]
    features: Features  # the columns to read
    parse: Callable[[IO[bytes], Features], Iterator[pa.Table]]

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The rows of a shard from row `first` on, in tables of any size."""
        return _skip_rows(self._tables(self.files[shard]), first)

    def _tables(self, uri: str) -> Iterator[pa.Table]:
        for file in open_members(uri):
            for table in self.parse(file, self.features):
                yield _conform(table, self.features)


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads Parquet files. A shard is a file, or a row group if shards are not one per file."""

    files: tuple[str, ...]
    file_of_shard: tuple[int, ...]
    features: Features  # the columns to read
    text_columns: tuple[str, ...]  # those of them that each file must have
    filters: Any  # as in `pyarrow.parquet.read_table`; None keeps all rows

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The rows of a shard from row `first` on, in tables of any size; row groups before it are not fetched."""
        number = self.file_of_shard[shard]
        with _open(self.files[number]) as file:
            fragment = pads.ParquetFileFormat().make_fragment(file)
            check_schema(fragment.physical_schema, self.features, self.text_columns)
            groups = fragment.row_groups
            if self.file_of_shard != tuple(range(len(self.files))):
                groups = [groups[shard - self.file_of_shard.index(number)]]
            if self.filters is None:  # with filters the row at which a group starts is unknown
                while groups and groups[0].num_rows <= first:
                    first -= groups.pop(0).num_rows
            yield from _skip_rows(self._tables(fragment.subset(row_group_ids=[group.id for group in groups])), first)

    def _tables(self, fragment: pads.ParquetFileFragment) -> Iterator[pa.Table]:
        batches = fragment.to_batches(
            columns=[name for name in self.features if name in fragment.physical_schema.names],
            filter=None if self.filters is None else pq.filters_to_expression(self.filters),
            batch_size=READ_ROWS,
            batch_readahead=0,
            fragment_readahead=0,
        )
        for batch in batches:
            yield _conform(pa.Table.from_batches([batch]), self.features)


class Reader(Protocol):
    """Reads the shards of a source."""

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The rows of a shard from row `first` on, in tables of any size."""
        ...


def check_schema(schema: pa.Schema, features: Features, text_columns: Sequence[str]) -> None:
    """Check that a Parquet file has the text columns, each column once, and of types that can be cast.

    Raises:
        ValueError, TypeError: it has not.
    """
    check_unique(schema.names, list(features))
    check_present(schema.names, text_columns)
    names = [name for name in features if name in schema.names]
    _conform(pa.schema([schema.field(name) for name in names]).empty_table(), features)


def open_members(uri: str) -> Iterator[IO[bytes]]:
    """The decompressed file, or the members of an archive; each is closed when the next one is taken."""
    manager = StreamingDownloadManager()
    for member in manager.iter_files(manager.extract(uri)):
        with _open(member) as file:
            yield file


def _open(uri: str) -> IO[bytes]:
    """A file for reading; requests that fail for a passing reason are repeated."""
    if "://" in uri and "::" not in uri and "*" in uri:
        uri = escape(uri)  # else taken for a glob
    return cast("IO[bytes]", xopen(uri, "rb"))


def _conform(table: pa.Table, features: Features) -> pa.Table:
    """The columns of the features, cast to their types; null where the table lacks one."""
    schema = features.arrow_schema
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table_cast(table.select(schema.names), schema)


def _skip_rows(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(rows)
        rows = max(0, rows - len(table))
