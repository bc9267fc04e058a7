"""What every target of an index implements: `Target` builds and publishes, `Searcher` answers queries.

A target is an object of one of the folders below this one (`faiss/`, `pgvector/`, ...), chosen by `open_target.py`; the
driver (`build.py`) calls it in this order:

    published → check → begin → for each kind: train → add (parts, in parallel) → finish (pieces, in parallel)
              → searcher → measured; then publish → clean

Invariants that each target keeps: a part that was added is found by listing (`added`), with no other log; `train`,
`add` and `finish` may be killed at any moment and repeated, also by two processes at once, with the same result;
readers see nothing of an index, or the previous one, until `publish`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.engine.parallel import Spread, in_threads
from varve.indexing.neighbours import Neighbours
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.rows import IndexRows, Vectors
from varve.indexing.source import IndexSource


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of index that a target can build.

    Attributes:
        name: as the target's library names it; exact for formats without an index.
        bytes_per_vector: of the finished index in memory, by formula.
        settings: parameters of the search, from the fastest to the most accurate; ({},) if there are none.
    """

    name: str
    bytes_per_vector: float
    settings: tuple[dict[str, int], ...] = ({},)


class Searcher(Protocol):
    """An index, staged or published, that answers queries."""

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """The k nearest vectors of each query.

        Args:
            queries: (Q, width) float32 as the encoder returns them, not normalized; sparse or late for such features.
            k: at least 1.
            setting: one of the kind's settings.

        Returns:
            Positions, -1 where fewer than k were found; scores as the index computes them, the nearest first.
        """
        ...

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids` of N positions, in their order."""
        ...

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """(N, width) float32, the stored vectors of N positions; None if the index does not hold the exact values."""
        ...


class Target(Protocol):
    """Where an index is written. Safe to pickle: holds addresses and settings, no connection and no credential."""

    @property
    def address(self) -> str:
        """Where the index is, for messages; without credentials."""
        ...

    @property
    def accepts(self) -> frozenset[str]:
        """The features that it can index: dense, sparse, late (`indexing.source`)."""
        ...

    def published(self) -> IndexRecord | None:
        """The record of the published index; None if there is none.

        Raises:
            RunError: the target cannot be reached or read.
        """
        ...

    def check(self, source: IndexSource) -> None:
        """Refuse what this target cannot hold, before anything is written.

        Raises:
            JobError: a package is missing, or the width, dtype or a column of the source is not supported.
        """
        ...

    def begin(self, request: IndexRequest) -> None:
        """Create what holds the index while it is built, or find that of an interrupted build.

        Raises:
            JobError: it was begun with another request; the message lists the differences.
        """
        ...

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """The kinds that this target can build, the cheapest build first; the driver drops those above the memory.

        Raises:
            JobError: the kind that the user asked for does not exist.
        """
        ...

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Make what all parts need before they are added (centroids, tables), unless it exists."""
        ...

    def added(self, kind: Kind, source: IndexSource) -> set[int]:
        """Numbers of the parts that need no `add` any more, from the target itself."""
        ...

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:
        """Add the rows of one part, unless they are there; runs in a worker."""
        ...

    def pieces(self, kind: Kind, source: IndexSource) -> int:
        """Number of calls of `finish`, which run in parallel: files, shards, or 1."""
        ...

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:
        """Merge or index one piece of what was added, unless that is done; runs in a worker after all parts."""
        ...

    def searcher(self, kind: Kind, source: IndexSource) -> AbstractContextManager[Searcher]:
        """The finished index, before it is published."""
        ...

    def publish(self, kind: Kind, source: IndexSource, record: IndexRecord, spread: Spread = in_threads) -> IndexRecord:
        """Make the index visible in one step; returns the record that is published, completed by the target.

        Args:
            kind: that was measured.
            source: of the vectors.
            record: without what the target adds.
            spread: hashes files in parallel.
        """
        ...

    def clean(self, record: IndexRecord) -> None:
        """Remove what building left: staged parts, other kinds, the replaced index. May be repeated."""
        ...

    def verify(self, record: IndexRecord) -> list[str]:
        """Check a published index against its record; returns one line per failure."""
        ...

    def open(self, record: IndexRecord) -> AbstractContextManager[Searcher]:
        """The published index."""
        ...
