"""Vectors as plain arrays in a folder: what everything else can read, and the fastest exact search.

Knows nothing of the meaning of the vectors. Invariants: row p of the files holds the vector of position p as the output
stores it (int8 multiplied by its scales); a file is written once, completely, by one task that reads the parts of its
rows block by block, so that neither memory nor disk grows with the file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError
from varve.indexing.arrays.array_format import MAX_FBIN_ROWS, ArrayFormat
from varve.indexing.arrays.array_searcher import ArraySearcher
from varve.indexing.index_folder import IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, IndexSource
from varve.indexing.target import Kind
from varve.storage.object_store import Storage

_MAX_FILE_BYTES = 2 * 10**9
_ROWS_PER_FILE = "rows_per_file"


@dataclass(frozen=True)
class ArrayTarget:
    """A folder of npy files, or with one fbin file.

    Attributes:
        destination: folder or address.
        settings: of the index that is built; None to read one.
        name: npy or fbin.
        max_file_bytes: of an npy file.
    """

    destination: str
    settings: Index | None
    name: Literal["npy", "fbin"]
    max_file_bytes: int = _MAX_FILE_BYTES

    @property
    def _folder(self) -> IndexFolder:
        return IndexFolder(Storage(self.destination))

    @property
    def address(self) -> str:
        """See `Target`."""
        return self._folder.storage.uri

    @property
    def accepts(self) -> frozenset[str]:
        """See `Target`."""
        return frozenset({DENSE})

    def published(self) -> IndexRecord | None:
        """See `Target`."""
        return IndexFolder(Storage(self.destination, patient=False)).published()

    def check(self, source: IndexSource) -> None:
        """Refuse more rows than the header of an fbin file can count; see `Target`."""
        if self.name == "fbin" and source.num_vectors > MAX_FBIN_ROWS:
            msg = f"{source.num_vectors:,} vectors: an fbin file holds at most {MAX_FBIN_ROWS:,}. Use npy:DEST"
            raise JobError(msg)

    def begin(self, request: IndexRequest) -> None:
        """See `Target`."""
        self._folder.begin(request)

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """One kind without an index; see `Target`."""
        if self.settings is not None and self.settings.kind not in {"auto", "exact"}:
            msg = f"kind: {self.settings.kind!r} is not allowed: {self.name} files hold vectors only; expected exact"
            raise JobError(msg)
        return (Kind("exact", float(self._format(source).row_bytes)),)

    def _format(self, source: IndexSource) -> ArrayFormat:
        dtype, width = source.column.dtype, source.width
        return ArrayFormat.choose(self.name, dtype, width, source.num_vectors, self.max_file_bytes)

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Nothing is needed; see `Target`."""

    def added(self, kind: Kind, source: IndexSource) -> set[int]:  # noqa: ARG002
        """See `Target`."""
        return self._folder.parts_with_ids(source.starts)

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:  # noqa: ARG002
        """Write the rows of the positions of one part; see `Target`."""
        self._folder.write_ids(rows)

    def pieces(self, kind: Kind, source: IndexSource) -> int:  # noqa: ARG002
        """Number of files; see `Target`."""
        return len(self._format(source).names)

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:  # noqa: ARG002
        """Write one file, unless it exists; see `Target`."""
        files = self._format(source)
        storage, name = self._folder.storage, files.names[piece]
        if storage.read(name, 0, 1) is None:
            storage.write(name, files.file_bytes(piece), partial(_file_content, files, source, piece))

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[ArraySearcher]:  # noqa: ARG002
        """See `Target`."""
        with self._opened(self._format(source), source.metric) as searcher:
            yield searcher

    def publish(
        self,
        kind: Kind,  # noqa: ARG002
        source: IndexSource,
        record: IndexRecord,
        spread: Spread = in_threads,
    ) -> IndexRecord:
        """See `Target`."""
        files = self._format(source)
        details = {_ROWS_PER_FILE: files.rows_per_file, "dtype": files.dtype.name}
        return self._folder.publish(replace(record, details=details), files.names, spread)

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002
        """See `Target`."""
        self._folder.remove_staged()

    def verify(self, record: IndexRecord) -> list[str]:
        """See `Target`."""
        return self._folder.verify(record)

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[ArraySearcher]:
        """See `Target`."""
        request = record.request
        feature = request.feature
        files = ArrayFormat.choose(self.name, feature["dtype"], feature["width"], request.num_vectors, 0)
        files = replace(files, rows_per_file=record.details[_ROWS_PER_FILE])
        with self._opened(files, Metric(**request.metric)) as searcher:
            yield searcher

    @contextmanager
    def _opened(self, files: ArrayFormat, metric: Metric) -> Iterator[ArraySearcher]:
        with TemporaryDirectory(prefix="varve-") as scratch:
            paths = [self._folder.local_file(name, Path(scratch)) for name in files.names]
            mapped = [files.map_file(number, path) for number, path in enumerate(paths)]
            yield ArraySearcher(self._folder, files, metric, mapped)


def _file_content(files: ArrayFormat, source: IndexSource, file: int) -> Iterator[bytes | memoryview]:
    """The bytes of one file, block by block; only the parts that hold its rows are read."""
    yield files.header(file)
    for _, block in source.blocks_of(files.positions(file)):
        assert isinstance(block, np.ndarray)
        yield files.encode(block).data.cast("B")
