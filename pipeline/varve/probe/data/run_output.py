"""A finished output, read column by column.

Knows the form of an output and nothing of labels or models. Invariants: tables come in the manifest's order of parts
and hold their rows in order, so a row's position in the run is the same for every column that is read; only the bytes
of the columns asked for are fetched, from a local folder and an object store alike.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from varve.encoder.feature_plan import ROW_COLUMNS, TOKEN_COLUMNS, WINDOW_COLUMN, Column
from varve.errors import JobError, RunError, one_line
from varve.output.manifest import JOB_NAME, MANIFEST_NAME, Manifest, read_manifest
from varve.output.part_file import Part, read_footer
from varve.output.schema import feature_columns, read_metadata
from varve.storage.object_store import Storage


@dataclass(frozen=True)
class Output:
    """The output of a run that has finished."""

    storage: Storage
    manifest: Manifest
    schema: pa.Schema

    @classmethod
    def open(cls, path: str) -> Self:
        """Look at an output.

        Raises:
            JobError: there is none, its run has not finished, or it has no row.
        """
        storage = Storage(path, patient=False)
        manifest = read_manifest(storage)
        if manifest is None:
            begun = storage.read(JOB_NAME) is not None
            what = "has not finished: see `varve status`" if begun else f"holds no output of Varve ({MANIFEST_NAME})"
            msg = f"{storage.uri} {what}"
            raise JobError(msg)
        if not manifest.num_rows:
            msg = f"{storage.uri} has no row"
            raise JobError(msg)
        part = manifest.parts[0]
        footer, _ = read_footer(storage, part.name, part.file_bytes)
        return cls(storage, manifest, footer.schema.to_arrow_schema())

    @cached_property
    def described(self) -> dict[str, Any]:
        """What the run says of itself in every part: model, revision, weights, feature columns."""
        return read_metadata(self.schema)

    @cached_property
    def features(self) -> dict[str, Column]:
        """The feature columns, in the order of the output."""
        return {column.name: column for column in feature_columns(self.schema)}

    @cached_property
    def others(self) -> list[str]:
        """The columns beside the features: those kept, and those that say something of a row."""
        scales = {column.scale_name for column in self.features.values()}
        left_out = {*self.features, *scales, *TOKEN_COLUMNS, WINDOW_COLUMN, "error", "shard", "row"}
        return [name for name in self.schema.names if name not in left_out]

    @property
    def kept(self) -> list[str]:
        """The columns that the run carried through."""
        return [name for name in self.others if name not in ROW_COLUMNS]

    def tables(self, names: Sequence[str]) -> Iterator[tuple[Part, pa.Table]]:
        """(part, its rows) with these columns only, in the order of the manifest.

        Raises:
            RunError: a part is gone or damaged.
        """
        for part in self.manifest.parts:
            yield part, self.read(part, names)

    def read(self, part: Part, names: Sequence[str]) -> pa.Table:
        """These columns of one part.

        Raises:
            RunError: it is gone or damaged.
        """
        if not part.range.num_rows:
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        try:
            with pq.ParquetFile(_Object(self.storage, part), pre_buffer=True) as file:
                table = file.read(columns=list(names), use_threads=False)
        except (pa.ArrowException, OSError, KeyError) as e:
            msg = f"{self.storage.uri}/{part.name} can't be read: {one_line(e)}. See `varve verify`"
            raise RunError(msg) from e
        if table.num_rows != part.range.num_rows:
            msg = f"{self.storage.uri}/{part.name} holds {table.num_rows} rows, its name says {part.range.num_rows}"
            raise RunError(msg)
        return table.select(list(names))


def stored_names(columns: Sequence[Column]) -> list[str]:
    """The stored columns that hold these features: themselves, and the scales of int8."""
    return [name for column in columns for name in (column.name, column.scale_name) if name]


def positions(values: pa.ChunkedArray, among: pa.Array) -> pa.ChunkedArray:
    """(R,) int32: where each value stands in another array; null where it does not."""
    return pc.index_in(values, among)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)


class _Object(io.RawIOBase):
    """A part as a file: each read is a request for those bytes alone."""

    def __init__(self, storage: Storage, part: Part) -> None:
        self._storage, self._part, self._at = storage, part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._part.file_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._part.file_bytes if size < 0 else size
        stop = min(self._at + size, self._part.file_bytes)
        if stop <= self._at:
            return b""
        content = self._storage.read(self._part.name, self._at, stop)
        if content is None:
            msg = f"{self._storage.uri}/{self._part.name} is gone"
            raise RunError(msg)
        self._at += len(content)
        return content
