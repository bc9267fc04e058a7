"""The folder of an index that consists of files: request, rows of the positions, files, manifest.

    _varve/index.json      the request: the first object that is written
    _varve/...             what is needed while the index is built; removed after it is published
    ids/ids-FFFFFFFFFFFF-LLLLLLLLLLLL.parquet   positions F to L - 1: shard, row and the kept columns, one file per part
    ...                    the index itself, files of the target
    _varve/manifest.json   the record, written last

Knows nothing of the content of the index. Invariants: each object is created once, and its bytes are a function of the
request; a folder without a manifest holds no index for its readers.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.record import RECORD_NAME, REQUEST_NAME, IndexRecord, IndexRequest
from varve.indexing.rows import POSITION, IndexRows
from varve.output.json_text import MAX_BYTES
from varve.output.manifest import JOB_NAME
from varve.storage.object_store import Storage
from varve.storage.stale_uploads import find_stale_uploads

IDS = "ids"
STAGED = "_varve/staged"
# The names of all objects that are written here, but for Lance's, which Lance itself writes.
INDEX_NAMES = re.compile(
    r"_varve/.+|ids/ids-\d{12}-\d{12}\.parquet|(?:index|vectors)(?:-\d{5,}(?:-of-\d{5,})?)?\.\w+|"
    r"documents/part-\d{6,}\.ndjson\.zst|mapping(?:\.elasticsearch)?\.json"
)
_IDS_NAME = re.compile(r"ids/ids-(\d{12})-(\d{12})\.parquet")
_UPLOAD_S = 60  # an upload writes more often


@dataclass(frozen=True)
class IndexFolder:
    """A folder or object store prefix that holds one index."""

    storage: Storage

    def published(self) -> IndexRecord | None:
        """The record of the index; None if none is published.

        Raises:
            RunError: the folder or its manifest cannot be read.
        """
        if self.storage.read(REQUEST_NAME) is None:  # the folder may be the output of a run, which has a manifest too
            return None
        content = self.storage.read_at_most(RECORD_NAME, MAX_BYTES)
        return None if content is None else IndexRecord.decode(content, f"{self.storage.uri}/{RECORD_NAME}")

    def begin(self, request: IndexRequest) -> None:
        """Write the request, or find the same one.

        Raises:
            JobError: the folder was begun with another request, is the output of a run, or holds files of others.
            RunError: the store failed.
        """
        if self.storage.read(JOB_NAME) is not None:
            msg = f"{self.storage.uri} is the output of a run. Choose another folder for the index"
            raise JobError(msg)
        foreign = self._foreign_object() if self.storage.read(REQUEST_NAME) is None else None
        if foreign and self.storage.read(REQUEST_NAME) is None:  # else it is of a build that began meanwhile
            msg = f"{self.storage.uri} holds other files, such as {foreign!r:.200}. Choose a new folder for the index"
            raise JobError(msg)
        if self.storage.create(REQUEST_NAME, request.encode()):
            return
        where = f"{self.storage.uri}/{REQUEST_NAME}"
        other = IndexRequest.decode(self.storage.read(REQUEST_NAME) or b"{}", where)
        if differences := other.differences(request):
            listed = "".join(f"\n  {line}" for line in differences)
            msg = f"{self.storage.uri} was begun as another index:{listed}\nChoose another folder"
            raise JobError(msg)

    def _foreign_object(self) -> str | None:
        """An object that no build of an index has written; files that systems put into every folder do not count."""
        names = (entry.name for entry in self.storage.list(""))
        return next((name for name in names if not name.startswith((".", "_varve/", "lost+found/"))), None)

    def write_ids(self, rows: IndexRows) -> None:
        """Write the rows of the positions of one part, unless they are there; a part without vectors has no file."""
        if len(rows):
            self.storage.create(_ids_name(rows.first, rows.first + len(rows)), _encode(rows.ids))

    def parts_with_ids(self, starts: NDArray[np.int64]) -> set[int]:
        """Numbers of the parts whose positions have their file, or that have no vectors.

        Args:
            starts: `IndexSource.starts`.
        """
        empty = set(np.flatnonzero(np.diff(starts) == 0).tolist())
        return empty | set(np.searchsorted(starts, [first for first, _ in self._ids_files()], side="right") - 1)

    def _ids_files(self) -> list[tuple[int, int]]:
        """(first position, last + 1) of every file of ids, ascending."""
        found = (_IDS_NAME.fullmatch(entry.name) for entry in self.storage.list(IDS))
        return sorted((int(name[1]), int(name[2])) for name in found if name)

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids` of N positions, in their order.

        Raises:
            RunError: a file of ids is missing or damaged.
        """
        files = self._ids_files()
        if len(positions) and not files:
            msg = f"{self.storage.uri}/{IDS} is missing"
            raise RunError(msg)
        starts = np.array([first for first, _ in files], np.int64)
        file_of = np.searchsorted(starts, positions, side="right") - 1
        tables = []
        for file in np.unique(file_of):
            first, stop = files[int(file)]
            here = positions[file_of == file]
            if here.min() < first or here.max() >= stop:
                msg = f"{self.storage.uri}/{IDS} has no row for position {int(here.max())}"
                raise RunError(msg)
            tables.append(self._read_ids(first, stop).take(pa.array(here - first)))
        if not tables:
            first, stop = files[0] if files else (0, 0)
            return self._read_ids(first, stop).slice(0, 0) if files else pa.table({POSITION: pa.array([], pa.int64())})
        order = np.argsort(np.argsort(file_of, kind="stable"), kind="stable")
        return pa.concat_tables(tables).take(pa.array(order))

    def _read_ids(self, first: int, stop: int) -> pa.Table:
        name = _ids_name(first, stop)
        content = self.storage.read(name)
        try:
            return pq.read_table(pa.BufferReader(content or b""), use_threads=False)
        except (pa.ArrowException, OSError) as e:
            msg = f"{self.storage.uri}/{name} is missing or damaged"
            raise RunError(msg) from e

    def local_file(self, name: str, scratch: Path) -> Path:
        """The path of an object: in the folder itself, or, of a store, its copy in `scratch`.

        Raises:
            RunError: the object is missing or no file, cannot be copied, or its name leads out of the folder.
        """
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            msg = f"{self.storage.uri}: the manifest names {name!r:.200}, which leads out of the folder"
            raise RunError(msg)
        path = Path(self.storage.uri) / name if self.storage.is_local else scratch / name.replace("/", "_")
        found = path.is_file() if self.storage.is_local else path.exists() or self.storage.download(name, path)
        if not found:
            msg = f"{self.storage.uri}/{name} is missing"
            raise RunError(msg)
        return path

    def published_file(self, record: IndexRecord, name: str, scratch: Path) -> Path:
        """The path of a file of a published index, see `local_file`; it has the size that the record states.

        Compiled code that maps a file reads beyond the end of one that is cut short.

        Raises:
            RunError: see `local_file`; or the size is another one.
        """
        path = self.local_file(name, scratch)
        expected, found = record.files.get(name, {}).get("bytes"), path.stat().st_size
        if found != expected:
            msg = (
                f"{self.storage.uri}/{name} is damaged: it has {found:,} bytes, and its manifest says {expected}. Copy "
                "the index again, or build it again"
            )
            raise RunError(msg)
        return path

    def publish(self, record: IndexRecord, names: Sequence[str], spread: Spread = in_threads) -> IndexRecord:
        """Write the manifest with the size and SHA-256 of each file; returns the published record.

        Args:
            record: without files.
            names: objects of the index itself; the files of ids are added.
            spread: reads the files in parallel.
        """
        all_names = [*names, *(_ids_name(first, stop) for first, stop in self._ids_files())]
        measured = dict(spread(self._measure_named, all_names))
        complete = replace(record, files={name: measured[name] for name in all_names})
        if not self.storage.create(RECORD_NAME, complete.encode()):
            return self.published() or complete
        return complete

    def _measure_named(self, name: str) -> tuple[str, dict[str, int | str]]:
        return name, self.measure(name)

    def measure(self, name: str) -> dict[str, int | str]:
        """{"bytes", "sha256"} of an object.

        Raises:
            RunError: it is missing.
        """
        with TemporaryDirectory(prefix="varve-") as scratch:
            path = self.local_file(name, Path(scratch))
            with path.open("rb") as file:
                return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def verify(self, record: IndexRecord) -> list[str]:
        """Compare every file with the record; returns one line per failure."""
        failures = []
        for name, expected in record.files.items():
            try:
                found: Mapping[str, object] = self.measure(name)
            except RunError as e:
                failures.append(str(e))
                continue
            failures += [
                f"{self.storage.uri}/{name}: {key} is {found[key]}, expected {expected.get(key)}"
                for key in ("bytes", "sha256")
                if found[key] != expected.get(key)
            ][:1]
        return failures

    def remove_staged(self, prefix: str = STAGED) -> None:
        """Delete the objects that only the build needed, and what interrupted uploads left in a local folder."""
        self.storage.delete([entry.name for entry in self.storage.list(prefix)])
        # A younger one may be an upload of another process that builds the same index.
        oldest = datetime.now(UTC) - timedelta(seconds=_UPLOAD_S)
        for upload in find_stale_uploads(self.storage, INDEX_NAMES):
            if upload.modified_at < oldest:
                upload.remove()


def _ids_name(first: int, stop: int) -> str:
    return f"{IDS}/ids-{first:012d}-{stop:012d}.parquet"


def _encode(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1)
    return buffer.getvalue()
