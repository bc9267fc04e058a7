"""What is searched: a feature of a finished output, in its parts or through a published index.

Knows nothing of texts and models. Invariants: an index answers only together with the run that it was made of, whose
manifest is compared by its hash; the parts of the output are read only for what the index does not hold.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.config.index import TARGETS
from varve.encoder.feature_plan import SPAN_COLUMNS, Column
from varve.engine.parallel import Spread, choose_spread
from varve.errors import JobError, RunError
from varve.indexing.metric import Metric
from varve.indexing.neighbours import NONE, Neighbours
from varve.indexing.open_target import PublishedIndex, find_index
from varve.indexing.record import REQUEST_NAME, IndexRecord
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD, Vectors, take
from varve.indexing.scores import pair_scores, prepare, prepare_queries
from varve.indexing.source import IndexSource, find_feature
from varve.indexing.target import Searcher
from varve.output import feature_sets
from varve.output.manifest import JOB_NAME
from varve.output.run_output import Output
from varve.retrieval.exact_search import in_cores, search_exact
from varve.retrieval.row_numbers import Located, locate, read_rows
from varve.storage.object_store import Storage

# Reading takes about 3 seconds per GB and core; the start of a Ray some seconds.
_WITH_CLUSTER_BYTES, _ALONE_BYTES = 2 * 10**9, 20 * 10**9
START, STOP = "start", "stop"  # characters of a window or chunk
_ID_COLUMNS = {POSITION, SHARD, ROW, ITEM}


@dataclass(frozen=True)
class Collection:
    """The vectors of one feature. A context: its end closes the index.

    Attributes:
        output: the finished run.
        column: definition of the feature.
        index: None to search the parts of the output.
        spread: searches parts in parallel.
    """

    output: Output
    column: Column
    index: PublishedIndex | None = None
    spread: Spread = in_cores
    _opened: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @cached_property
    def searcher(self) -> Searcher:
        """The index, opened by its first use."""
        assert self.index is not None
        return self._opened.enter_context(self.index.open())

    @property
    def is_dense(self) -> bool:
        """Whether a position is one vector, with a number for each dimension."""
        return self.column.form == "vector" or self.column.form in SPAN_COLUMNS

    @cached_property
    def source(self) -> IndexSource:
        """The positions of the output."""
        return IndexSource.open(self.output, self.column.name)

    @property
    def metric(self) -> Metric:
        """How vectors are compared."""
        return Metric(**self.index.record.request.metric) if self.index else self.source.metric

    @property
    def num_vectors(self) -> int:
        """Number of positions."""
        return self.index.record.request.num_vectors if self.index else self.source.num_vectors

    def nearest(self, queries: Vectors, k: int, rescored: int = 0) -> Neighbours:
        """The k nearest vectors of each query.

        Args:
            queries: Q, as the encoder returns them.
            k: at least 1; fewer are returned if there are fewer vectors.
            rescored: candidates of the index whose exact scores decide; 0: the scores of the index.

        Raises:
            JobError: the vectors are not dense, so candidates have no exact scores.
            RunError: the index or the output cannot be read.
        """
        k = min(k, self.num_vectors)
        if self.index is None:
            return search_exact(self.source, queries, k, self.spread)
        setting = self.index.record.setting
        if not rescored:
            return self.searcher.search(queries, k, setting)
        found = self.searcher.search(queries, min(max(k, rescored), self.num_vectors), setting)
        return self._rescore(queries, found).best(k)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, width) float32, the exact vectors of N positions: from the index if it has them, else from the output."""
        vectors = self.searcher.dense_at(positions) if self.index else None
        return self.source.dense_at(positions) if vectors is None else vectors

    def _rescore(self, queries: Vectors, found: Neighbours) -> Neighbours:
        """The same positions with exact scores."""
        if not self.is_dense:
            msg = f"--rescore needs a dense feature: {self.column.name} has {self.column.form} vectors"
            raise JobError(msg)
        query_of, slot = np.nonzero(found.positions != NONE)
        positions, inverse = np.unique(found.positions[query_of, slot], return_inverse=True)
        exact = prepare(self.dense_at(positions), self.metric)
        asked = take(prepare_queries(queries, self.metric), query_of)
        scores = np.full(found.scores.shape, -np.inf, np.float32)
        scores[query_of, slot] = pair_scores(asked, take(exact, inverse), self.metric)
        return replace(found, scores=scores)

    def locate(self, positions: NDArray[np.int64]) -> Located:
        """The rows of N positions, from the output."""
        return locate(self.source, positions)

    def default_columns(self) -> list[str]:
        """Kept columns that are shown if the user names none: those of the index, else those of the output."""
        settings = self.index.record.request.settings if self.index else {}
        stored = [*([settings["key"]] if settings.get("key") else []), *(settings.get("keep") or ())]
        return stored or list(self.output.kept_columns)

    def rows(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """position, shard, row, for windows and chunks also item, start and stop, and kept columns of N positions.

        Raises:
            JobError: there is no such column.
            RunError: the index or the output cannot be read.
        """
        check_columns(self.output, columns)
        if self.index is None:
            located = self.locate(positions)
            table = read_rows(self.output, located.numbers, columns)
            return _with_items(table.add_column(0, POSITION, [pa.array(positions)]), located)
        stored = self.searcher.rows(positions)
        missing = [name for name in columns if name not in stored.column_names]
        if missing and len(positions):
            read = read_rows(self.output, self.locate(positions).numbers, missing)
            for name in missing:
                stored = stored.append_column(name, read[name])
        return stored.select([*(n for n in stored.column_names if n in _ID_COLUMNS), *columns])


def _with_items(table: pa.Table, located: Located) -> pa.Table:
    if located.items is None or located.spans is None:
        return table
    spans = {ITEM: located.items, START: located.spans[:, 0], STOP: located.spans[:, 1]}
    for at, (name, values) in enumerate(spans.items(), 3):
        table = table.add_column(at, name, [pa.array(values)])
    return table


def check_columns(output: Output, columns: Sequence[str]) -> None:
    """Check that columns are kept columns of a run.

    Raises:
        JobError: one is not.
    """
    if unknown := [name for name in columns if name not in output.kept_columns]:
        listed = ", ".join(output.kept_columns) or "none"
        msg = f"{output.storage.uri} has no kept column {unknown[0]!r}; it has: {listed}"
        raise JobError(msg)


def open_collection(path: str, feature: str | None = None, index: str | None = None) -> Collection:
    """Open what a path names.

    Args:
        path: output of a finished run, or an index: a folder, TARGET:DEST or the address of a server.
        feature: name of the column; None: the only one that can be searched, or the only dense one; of an index, its.
        index: an index of the output at `path`; needed only if the output was moved after the index was built.

    Raises:
        JobError: there is neither at the path, the run has not finished, the index is not published or belongs to
            another run, or there is no such feature.
        RunError: it cannot be read.
    """
    if index is None and is_output(path):
        opened = feature_sets.open(path)
        column = find_feature(opened, feature)
        return Collection(opened.led_by(column.name), column, spread=_spread(opened))
    published = _open_index(index or path)
    opened = _open_source(published.record, path if index else None, index or path)
    name = published.record.request.feature["name"]
    if feature not in {None, name}:
        msg = f"{index} is an index of {name}, not of {feature}. Remove --feature, or search the output itself"
        raise JobError(msg)
    return Collection(opened, find_feature(opened, name), published)


def _spread(output: Output) -> Spread:
    """Threads of this process, or the tasks of Ray if reading the output takes longer than its start."""
    least_bytes = _WITH_CLUSTER_BYTES if os.environ.get("RAY_ADDRESS") else _ALONE_BYTES
    return in_cores if output.manifest.file_bytes < least_bytes else choose_spread(output.manifest)


def is_output(path: str) -> bool:
    """Whether a run has begun to write its output at an address."""
    return path.partition(":")[0] not in TARGETS and Storage(path, patient=False).read(JOB_NAME) is not None


def _open_index(address: str) -> PublishedIndex:
    is_server = address.partition(":")[0] in TARGETS
    if not is_server and Storage(address, patient=False).read(REQUEST_NAME) is None:
        msg = f"{address} holds neither a run's output nor an index"
        raise JobError(msg)
    if (found := find_index(address)) is None:
        msg = f"{address} holds no published index. Run its `varve index` command, which builds or continues it"
        raise JobError(msg)
    return found


def _open_source(record: IndexRecord, path: str | None, index: str) -> Output:
    """The output that an index was made of: its manifest and its model are needed to encode queries."""
    source = record.request.source
    where = path or source["path"]
    try:
        opened = feature_sets.open(where).led_by(record.request.feature["name"])
    except (JobError, RunError) as e:
        msg = f"{index} was made of the output {source['path']}, whose record names the model for queries: {e}"
        advice = f"{msg}. If the output was moved, search it there: varve search PATH --index {index}"
        raise JobError(msg if path else advice) from e
    if opened.manifest.sha256 != source["manifest_sha256"]:
        msg = (
            f"{index} was made of another output than {where}: sha256 of the manifest {source['manifest_sha256']}, "
            f"found {opened.manifest.sha256}"
        )
        raise JobError(msg)
    return opened
