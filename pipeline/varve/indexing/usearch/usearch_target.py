"""HNSW graphs in USearch's file format: small files that are searched from the disk.

Knows nothing of the meaning of the vectors. Invariants: the graphs of each kind are staged under its name until one
kind is published; a graph holds consecutive positions, which are its keys, and its bytes are a function of the request.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.index_folder import STAGED, IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.record import IndexRecord, IndexRequest, read_starts
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, IndexSource
from varve.indexing.target import Kind
from varve.indexing.usearch.graph_file import build_graph, view_graph
from varve.indexing.usearch.usearch_kind import choose_kinds
from varve.indexing.usearch.usearch_searcher import UsearchSearcher
from varve.storage.object_store import Storage

_VECTORS_PER_GRAPH = 10**6  # one thread builds it in minutes
_STARTS = "starts"
# Kinds that hold the values of a feature's dtype without loss.
_EXACT = {("f32", "float32"), ("f32", "float16"), ("f32", "int8"), ("f16", "float16")}


@dataclass(frozen=True)
class UsearchTarget:
    """A folder with one USearch file, or several that are searched together.

    Attributes:
        destination: folder or address.
        settings: of the index that is built; None to read one.
    """

    destination: str
    settings: Index | None

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
        """See `Target`."""
        _check_package()
        if source.column.dtype == "binary":
            msg = f"{source.column.name} is binary: usearch compares its bits as numbers. Use npy:DEST"
            raise JobError(msg)

    def begin(self, request: IndexRequest) -> None:
        """See `Target`."""
        self._folder.begin(request)

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """See `Target`."""
        wanted = "auto" if self.settings is None else self.settings.kind
        return choose_kinds(wanted, source.metric, source.width)

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Nothing is needed; see `Target`."""

    def added(self, kind: Kind, source: IndexSource) -> set[int]:  # noqa: ARG002
        """See `Target`."""
        return self._folder.parts_with_ids(source.starts)

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:  # noqa: ARG002
        """Write the rows of the positions of one part; see `Target`."""
        self._folder.write_ids(rows)

    def pieces(self, kind: Kind, source: IndexSource) -> int:  # noqa: ARG002
        """Number of graphs; see `Target`."""
        wanted = self.settings.shards if self.settings else None
        return min(wanted or -(-source.num_vectors // _VECTORS_PER_GRAPH), source.num_vectors)

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:
        """Build one graph, unless it is staged; see `Target`."""
        storage = self._folder.storage
        staged = _staged_name(kind.name, piece, self.pieces(kind, source))
        if storage.read(staged, 0, 1) is not None:
            return
        starts = self._starts(kind, source)
        blocks = source.blocks_of(range(int(starts[piece]), int(starts[piece + 1])))
        with TemporaryDirectory(prefix="varve-") as scratch:
            path = Path(scratch) / "graph"
            dense = ((first, block) for first, block in blocks if isinstance(block, np.ndarray))
            build_graph(path, kind.name, source.metric, source.width, dense)
            storage.upload(staged, path)

    def _starts(self, kind: Kind, source: IndexSource) -> np.ndarray:
        """(graphs + 1,) first position of each graph."""
        pieces = self.pieces(kind, source)
        return np.arange(pieces + 1, dtype=np.int64) * source.num_vectors // pieces

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[UsearchSearcher]:
        """See `Target`."""
        starts = self._starts(kind, source)[:-1]
        names = [_staged_name(kind.name, piece, len(starts)) for piece in range(len(starts))]
        is_exact = (kind.name, source.column.dtype) in _EXACT
        with self._opened(names, starts, source.metric, self._folder.local_file, is_exact=is_exact) as searcher:
            yield searcher

    def publish(self, kind: Kind, source: IndexSource, record: IndexRecord, spread: Spread = in_threads) -> IndexRecord:
        """Give the staged graphs their names, and write the manifest; see `Target`."""
        starts = self._starts(kind, source)[:-1]
        names = [_name(piece, len(starts)) for piece in range(len(starts))]
        try:
            for piece, name in enumerate(names):
                self._copy(_staged_name(kind.name, piece, len(starts)), name)
        except RunError:
            if existing := self._folder.published():  # by another process, which removed what was staged
                return existing
            raise
        return self._folder.publish(replace(record, details={_STARTS: starts.tolist()}), names, spread)

    def _copy(self, staged: str, name: str) -> None:
        with TemporaryDirectory(prefix="varve-") as scratch:
            self._folder.storage.upload(name, self._folder.local_file(staged, Path(scratch)))

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002
        """See `Target`."""
        self._folder.remove_staged()

    def verify(self, record: IndexRecord) -> list[str]:
        """See `Target`."""
        return self._folder.verify(record)

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[UsearchSearcher]:
        """See `Target`."""
        _check_package()
        starts = np.array(read_starts(record.details[_STARTS], record.request.num_vectors), np.int64)
        names = [_name(piece, len(starts)) for piece in range(len(starts))]
        is_exact = (record.kind, record.request.feature["dtype"]) in _EXACT
        metric, locate = Metric(**record.request.metric), partial(self._folder.published_file, record)
        with self._opened(names, starts, metric, locate, is_exact=is_exact) as searcher:
            yield searcher

    @contextmanager
    def _opened(
        self,
        names: Sequence[str],
        starts: np.ndarray,
        metric: Metric,
        locate: Callable[[str, Path], Path],
        *,
        is_exact: bool,
    ) -> Iterator[UsearchSearcher]:
        with TemporaryDirectory(prefix="varve-") as scratch:
            graphs = [view_graph(locate(name, Path(scratch))) for name in names]
            try:
                yield UsearchSearcher(self._folder, metric, graphs, starts, is_exact)
            finally:
                for graph in graphs:
                    graph.reset()  # unmaps the file


def _check_package() -> None:
    if find_spec("usearch") is None:
        msg = "usearch:DEST needs the package usearch: run pip install '.[usearch]' in Varve's folder"
        raise JobError(msg)


def _name(piece: int, pieces: int) -> str:
    return "index.usearch" if pieces == 1 else f"index-{piece:05d}-of-{pieces:05d}.usearch"


def _staged_name(kind: str, piece: int, pieces: int) -> str:
    return f"{STAGED}/{kind}/{_name(piece, pieces)}"
