"""A Lance dataset in a folder or object store, which LanceDB opens as the table docs.

    docs.lance/                 one fragment per part, with the rows of the positions and their vectors
    _varve/staged/fragments/    one object per part: the fragment that holds it
    _varve/staged/KIND/         one object per segment of the index
    _varve/manifest.json        the record, written last (`IndexFolder`)

Invariants: row p of the dataset is position p; a part is added if its object in `fragments/` exists, which is created
once, so files that two workers write of the same part are not both in the dataset; the index covers all rows.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.index_folder import STAGED, IndexFolder
from varve.indexing.lance.lance_kind import (
    EXACT,
    NAMES,
    build_options,
    kinds_of,
    num_partitions,
    num_segments,
    rows_per_segment,
)
from varve.indexing.lance.lance_searcher import LanceSearcher, lance_metric
from varve.indexing.lance.layout import VECTOR, table_of, table_schema
from varve.indexing.lance.table import Table
from varve.indexing.metric import Metric
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, LATE, IndexSource
from varve.indexing.target import Kind
from varve.lake.lance.dataset import lance_library
from varve.storage.object_store import Storage

TABLE = "docs"
_FOLDER = f"{TABLE}.lance"
_FRAGMENTS = f"{STAGED}/fragments"
_HINT = "/latest_version_hint.json"  # a cache, which later versions replace
# Names that Lance or LanceDB give to columns of a result.
_RESERVED = {VECTOR, "_distance", "_rowid", "_rowaddr", "_score", "_relevance_score"}


@dataclass(frozen=True)
class LanceTarget:
    """A folder that holds a Lance dataset; see `indexing.target.Target`.

    Attributes:
        destination: folder or address.
        settings: of an index that is built; None to read one.
    """

    destination: str
    settings: Index | None = None

    @property
    def _folder(self) -> IndexFolder:
        return IndexFolder(Storage(self.destination))

    @property
    def _table(self) -> Table:
        return Table(f"{self.address}/{_FOLDER}")

    @property
    def address(self) -> str:
        """The folder of the database."""
        return self._folder.storage.uri

    @property
    def accepts(self) -> frozenset[str]:
        """Dense features, and late interaction."""
        return frozenset({DENSE, LATE})

    def published(self) -> IndexRecord | None:
        """See `Target`; Lance is not imported."""
        return IndexFolder(Storage(self.destination, patient=False)).published()

    def check(self, source: IndexSource) -> None:
        """Refuse columns whose names Lance gives to others.

        Raises:
            JobError: there is one, or pylance is missing.
        """
        lance_library()
        if taken := [name for name in source.columns if name in _RESERVED]:
            msg = f"--keep {taken[0]}: a Lance index has a column of this name of its own. Leave it out"
            raise JobError(msg)

    def begin(self, request: IndexRequest) -> None:
        """See `IndexFolder.begin`."""
        self._folder.begin(request)

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """See `lance_kind.kinds_of`."""
        return kinds_of(source, self.settings.kind if self.settings else "auto")

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Do nothing: each segment trains its own centroids, so that segments need no common step before them."""

    def added(self, kind: Kind, source: IndexSource) -> set[int]:  # noqa: ARG002 (all kinds have the same fragments)
        """The parts whose fragment is listed; a part without vectors has none."""
        listed = [int(entry.name.rpartition("/")[2].split(".")[0]) for entry in self._folder.storage.list(_FRAGMENTS)]
        empty = set(np.flatnonzero(np.diff(source.starts) == 0).tolist())
        return empty | set((np.searchsorted(source.starts, listed, side="right") - 1).tolist())

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:  # noqa: ARG002 (as above)
        """Write one part as a fragment, then the object that names it; of two workers, the first one counts."""
        storage, name = self._folder.storage, _fragment_name(rows.first)
        if len(rows) and storage.read(name) is None:
            fragments = self._table.write_fragments(table_of(rows, source))
            storage.create(name, json.dumps(fragments).encode())

    def pieces(self, kind: Kind, source: IndexSource) -> int:
        """The number of segments of the index, which are built in parallel."""
        return 1 if kind.name == EXACT else num_segments(source)

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:
        """Create the dataset of all fragments, unless it exists, and build one segment of the index.

        Raises:
            RunError: the store failed, or the dataset has another number of rows than the source.
        """
        table = self._table
        if (dataset := table.open()) is None:
            table.create(table_schema(source), self._fragments(source))
            dataset = table.require()
        if (found := dataset.count_rows()) != source.num_vectors:
            msg = f"{table.uri} has {found:,} rows, expected {source.num_vectors:,}. Delete it and build it again"
            raise RunError(msg)
        name = _segment_name(kind, piece)
        if kind.name == EXACT or self._folder.storage.read(name) is not None:
            return
        groups = np.array_split([each.fragment_id for each in dataset.get_fragments()], self.pieces(kind, source))
        options = {
            "metric": lance_metric(source.metric),
            "num_partitions": num_partitions(rows_per_segment(source)),
            **build_options(kind.name, source.width),
        }
        segment = table.build_segment(_index_name(kind), kind.name, options, groups[piece].tolist())
        self._folder.storage.create(name, segment)

    def _fragments(self, source: IndexSource) -> list[dict]:
        """The fragments of all parts, in the order of positions."""
        fragments = []
        for first in source.starts[:-1][np.diff(source.starts) > 0].tolist():
            if (content := self._folder.storage.read(_fragment_name(first))) is None:
                msg = f"{self.address}/{_fragment_name(first)} is missing: a part was not added"
                raise RunError(msg)
            fragments += json.loads(content)
        return fragments

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[LanceSearcher]:
        """The dataset with the index of all segments, which is committed here, in one process."""
        self._commit(kind, source)
        yield LanceSearcher(self._table.require(), source.metric, source.width)

    def _commit(self, kind: Kind, source: IndexSource) -> None:
        if kind.name == EXACT:
            self._table.drop_indices()
            return
        names = [_segment_name(kind, piece) for piece in range(self.pieces(kind, source))]
        segments = [content for name in names if (content := self._folder.storage.read(name)) is not None]
        self._table.commit_index(_index_name(kind), segments, source.num_vectors)

    def publish(self, kind: Kind, source: IndexSource, record: IndexRecord, spread: Spread = in_threads) -> IndexRecord:
        """Commit the index, remove all files that the dataset does not use, and write the manifest."""
        if published := self._folder.published():
            return published
        self._commit(kind, source)
        # The files of other kinds are removed now, so the objects that name them are removed first.
        for name in {*NAMES} - {kind.name}:
            self._folder.remove_staged(f"{STAGED}/{name}")
        self._table.remove_unused_files()
        if kind.name != EXACT:
            self._table.check_index(_index_name(kind), source.num_vectors)
        details = {"table": TABLE, "column": VECTOR, "metric": lance_metric(source.metric), "width": source.width}
        names = sorted(entry.name for entry in self._folder.storage.list(_FOLDER) if not entry.name.endswith(_HINT))
        return self._folder.publish(replace(record, details=details), names, spread)

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002 (nothing is replaced)
        """Delete the objects that name fragments and segments."""
        self._folder.remove_staged()

    def verify(self, record: IndexRecord) -> list[str]:
        """Compare every file with the record."""
        return self._folder.verify(record)

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[LanceSearcher]:
        """The latest version of the dataset: rows that were appended with LanceDB are searched too."""
        metric = Metric(**record.request.metric)
        yield LanceSearcher(self._table.require(), metric, record.details["width"])


def _fragment_name(first: int) -> str:
    return f"{_FRAGMENTS}/{first:012d}.json"


def _segment_name(kind: Kind, piece: int) -> str:
    return f"{STAGED}/{kind.name}/segment-{piece:05d}.json"


def _index_name(kind: Kind) -> str:
    return f"{VECTOR}_{kind.name.lower()}"
