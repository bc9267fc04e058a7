"""The target `faiss:FOLDER`: one index file that plain FAISS reads, or one file per shard of a graph.

    index.faiss                            its ids are positions
    index-00000-of-00003.faiss             a shard of a graph: its ids are positions - the shard's first position
    vectors.npy                            RaBitQ only: vectors that its candidates are compared with again
    _varve/staged/KIND/trained/index.faiss the index without vectors
    _varve/staged/KIND/parts/              codes of the parts; a graph has none
    _varve/staged/KIND/finished/           the files above, until they are published

Invariants: equal requests give equal bytes, whatever was interrupted, with any number of workers; staged objects of two
kinds have different names; memory while merging is bounded by one inverted list, while building a graph by its codes.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.faiss.coded_part import check_size, encode_part
from varve.indexing.faiss.faiss_kind import FaissKind, candidates
from varve.indexing.faiss.faiss_library import load_faiss
from varve.indexing.faiss.faiss_searcher import FaissSearcher
from varve.indexing.faiss.graph_file import write_graph
from varve.indexing.faiss.merged_file import write_flat, write_lists
from varve.indexing.faiss.staging import (
    INDEX_NAME,
    cached_index,
    names_in,
    part_name,
    promote,
    read_index,
    staged_folder,
    staged_suffixes,
    trained_name,
    trained_version,
    workspace,
)
from varve.indexing.faiss.stored_vectors import stored_dtype, write_vectors
from varve.indexing.faiss.training import train_index
from varve.indexing.index_folder import STAGED, IndexFolder
from varve.indexing.metric import Metric
from varve.indexing.record import IndexRecord, IndexRequest, read_starts
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, IndexSource
from varve.indexing.target import Kind
from varve.storage.object_store import Storage

VECTORS_NAME = "vectors.npy"
_GRAPH_SHARD_ROWS = 1_000_000
_DOWNLOADS = 8
_PART = re.compile(r"part-(\d{8})\.(codes|vectors)")


@dataclass(frozen=True)
class FaissTarget:
    """A folder or object store prefix that holds an index of FAISS.

    Attributes:
        destination: path or address.
        settings: of an index that is built; None to read one.
    """

    destination: str
    settings: Index | None = None

    @property
    def _folder(self) -> IndexFolder:
        return IndexFolder(Storage(self.destination))

    @property
    def address(self) -> str:
        """Where the index is."""
        return self._folder.storage.uri

    @property
    def accepts(self) -> frozenset[str]:
        """Dense features."""
        return frozenset({DENSE})

    def published(self) -> IndexRecord | None:
        """The record of the published index; None if there is none."""
        return self._folder.published()

    def check(self, source: IndexSource) -> None:
        """Refuse what FAISS cannot index.

        Raises:
            JobError: faiss is missing, the vectors are binary, or the kind cannot be built of them.
        """
        load_faiss()
        name = source.column.name
        if source.column.dtype == "binary":
            msg = f"{name} has binary vectors; the target faiss indexes float32, float16 and int8 ones: choose such a "
            msg += "feature (with --kind IVF{n},RaBitQ the index is as small), or write the bits with --to npy:DEST"
            raise JobError(msg)
        self.kinds(source)

    def begin(self, request: IndexRequest) -> None:
        """Write the request, or find that of an interrupted build."""
        self._folder.begin(request)

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """The kind that the user named, or what `auto` tries.

        Raises:
            JobError: the target does not build the kind, or not of these vectors.
        """
        asked = self.settings.kind if self.settings else "auto"
        found = candidates(source.num_vectors) if asked == "auto" else [FaissKind.parse(asked)]
        for kind in found:
            kind.check(source.width, source.num_vectors)
        return [kind.describe(source.width, source.num_vectors) for kind in found]

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Stage the index without vectors, unless it exists."""
        if not self.published() and not names_in(self._folder.storage, f"{staged_folder(kind)}/trained"):
            content = train_index(FaissKind.parse(kind.name), source)
            self._folder.storage.create(trained_name(kind), content)

    @contextmanager
    def _unless_published(self) -> Iterator[None]:
        """Ignore that staged files are missing if another builder has published the index and removed them.

        Raises:
            RunError, OSError, RuntimeError (of FAISS): they are missing, and the index is not published.
        """
        try:
            yield
        except (RunError, OSError, RuntimeError):
            if not self.published():
                raise

    def added(self, kind: Kind, source: IndexSource) -> set[int]:
        """Numbers of the parts whose codes and ids are there; of a published index, all."""
        if self.published():
            return set(range(source.num_parts))
        with_ids = self._folder.parts_with_ids(source.starts)
        filled = set(np.flatnonzero(np.diff(source.starts)).tolist())
        for suffix in staged_suffixes(FaissKind.parse(kind.name)):
            with_ids -= filled - self._staged_parts(kind, suffix)
        return with_ids

    def _staged_parts(self, kind: Kind, suffix: str) -> set[int]:
        found = (_PART.fullmatch(name) for name in names_in(self._folder.storage, f"{staged_folder(kind)}/parts"))
        return {int(match[1]) for match in found if match and match[2] == suffix}

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:
        """Stage the codes and write the ids of one part, unless they are there."""
        if len(rows):
            with self._unless_published():
                self._stage(kind, source, rows)
                self._folder.write_ids(rows)

    def _stage(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:
        faiss_kind, storage = FaissKind.parse(kind.name), self._folder.storage
        vectors, suffixes = source.metric.prepare(rows.dense), staged_suffixes(faiss_kind)
        if "codes" in suffixes:
            index = cached_index(storage, trained_name(kind), *trained_version(storage, kind))
            storage.create(part_name(kind, rows.part, "codes"), encode_part(faiss_kind, index, vectors, rows.first))
        if "vectors" in suffixes:
            content = vectors.astype(stored_dtype(source)).tobytes()
            storage.create(part_name(kind, rows.part, "vectors"), content)

    def pieces(self, kind: Kind, source: IndexSource) -> int:
        """Number of files."""
        return len(self._file_names(FaissKind.parse(kind.name), source))

    def _file_names(self, kind: FaissKind, source: IndexSource) -> list[str]:
        shards = len(self._shard_starts(kind, source)) - 1
        names = [INDEX_NAME] if shards == 1 else [f"index-{n:05d}-of-{shards:05d}.faiss" for n in range(shards)]
        return [*names, VECTORS_NAME] if kind.rescores else names

    def _shard_starts(self, kind: FaissKind, source: IndexSource) -> list[int]:
        """Position of the first vector of each index file, then the number of vectors."""
        shards = 1
        if kind.family == "graph":
            asked = self.settings.shards if self.settings else None
            shards = min(asked or -(-source.num_vectors // _GRAPH_SHARD_ROWS), source.num_vectors)
        return [source.num_vectors * shard // shards for shard in range(shards + 1)]

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:
        """Write one file of the index, unless it is there.

        Raises:
            RunError: a staged part is missing or damaged.
        """
        storage, faiss_kind = self._folder.storage, FaissKind.parse(kind.name)
        name = self._file_names(faiss_kind, source)[piece]
        finished = f"{staged_folder(kind)}/finished"
        if name in names_in(storage, finished) or self.published():
            return
        with self._unless_published(), workspace(storage, f"{staged_folder(kind)}/work") as work:
            self._write_piece(kind, source, piece, work / name)
            if storage.is_local:
                Path(storage.uri, finished).mkdir(parents=True, exist_ok=True)
                (work / name).replace(Path(storage.uri, finished, name))
            else:
                storage.upload(f"{finished}/{name}", work / name)

    def _write_piece(self, kind: Kind, source: IndexSource, piece: int, path: Path) -> None:
        faiss_kind = FaissKind.parse(kind.name)
        if path.name == VECTORS_NAME:
            dtype = stored_dtype(source)
            parts = self._parts(kind, source, "vectors", source.width * dtype.itemsize, path.parent)
            shape = (source.num_vectors, source.width)
            return write_vectors([file for file, _ in parts], shape, dtype, path)
        index = read_index(self._folder.storage, trained_name(kind))
        if faiss_kind.family == "graph":
            starts = self._shard_starts(faiss_kind, source)
            return write_graph(index, source, starts[piece], starts[piece + 1], path)
        if faiss_kind.family == "lists":
            return write_lists(index, self._parts(kind, source, "codes", None, path.parent), path)
        parts = self._parts(kind, source, "codes", index.code_size, path.parent)
        return write_flat(index, [file for file, _ in parts], source.num_vectors, path)

    def _parts(
        self, kind: Kind, source: IndexSource, suffix: str, vector_bytes: int | None, scratch: Path
    ) -> list[tuple[Path, int]]:
        """(local file, number of vectors) of each part that has vectors, ascending; their size is checked."""
        counts = np.diff(source.starts)
        parts = np.flatnonzero(counts)
        with ThreadPoolExecutor(_DOWNLOADS) as threads:
            names = [part_name(kind, part, suffix) for part in parts.tolist()]
            paths = list(threads.map(lambda name: self._folder.local_file(name, scratch), names))
        found = list(zip(paths, counts[parts].tolist(), strict=True))
        for path, num_vectors in found if vector_bytes is not None else []:
            check_size(path, vector_bytes * num_vectors)
        return found

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[FaissSearcher]:
        """The finished index, before it is published."""
        faiss_kind = FaissKind.parse(kind.name)
        names, starts = self._file_names(faiss_kind, source), self._shard_starts(faiss_kind, source)
        finished = [f"{staged_folder(kind)}/finished/{name}" for name in names]
        with ExitStack() as stack:
            opened = None
            locate = self._folder.local_file
            with self._unless_published():
                opened = stack.enter_context(self._open(faiss_kind, source.metric, finished, starts[:-1], locate))
            yield opened or stack.enter_context(self._open(faiss_kind, source.metric, names, starts[:-1], locate))

    @contextmanager
    def _open(
        self,
        kind: FaissKind,
        metric: Metric,
        names: Sequence[str],
        firsts: Sequence[int],
        locate: Callable[[str, Path], Path],
    ) -> Iterator[FaissSearcher]:
        with TemporaryDirectory(prefix="varve-") as scratch:
            paths = [locate(name, Path(scratch)) for name in names]
            files = list(zip(firsts, paths, strict=False))  # the vectors come after them
            vectors = paths[-1] if kind.rescores else None
            yield FaissSearcher.open(kind, metric, self._folder, files, vectors)

    def publish(self, kind: Kind, source: IndexSource, record: IndexRecord, spread: Spread = in_threads) -> IndexRecord:
        """Give the finished files their names, and write the manifest."""
        faiss_kind, storage = FaissKind.parse(kind.name), self._folder.storage
        names = self._file_names(faiss_kind, source)
        if (published := self.published()) is not None:
            return published
        finished = f"{staged_folder(kind)}/finished"
        with self._unless_published():
            for name in names:
                promote(storage, f"{finished}/{name}", name)
        firsts = self._shard_starts(faiss_kind, source)[:-1]
        details = {**record.details, "files": names, "first_positions": firsts}
        versions = {**record.versions, "faiss": load_faiss().__version__}
        return self._folder.publish(replace(record, details=details, versions=versions), names, spread)

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002
        """Remove what was staged."""
        storage = self._folder.storage
        if storage.is_local:  # also the folders
            shutil.rmtree(Path(storage.uri, STAGED), ignore_errors=True)
        self._folder.remove_staged()

    def verify(self, record: IndexRecord) -> list[str]:
        """Compare every file with the record."""
        return self._folder.verify(record)

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[FaissSearcher]:
        """The published index."""
        metric = Metric(**record.request.metric)
        kind, names = FaissKind.parse(record.kind), record.details["files"]
        firsts = read_starts(record.details["first_positions"], record.request.num_vectors)
        if len(names) != len(firsts) + kind.rescores:
            msg = f"{len(names)} files of {len(firsts)} shards"
            raise ValueError(msg)
        locate = partial(self._folder.published_file, record)
        with self._open(kind, metric, names, firsts, locate) as searcher:
            yield searcher
