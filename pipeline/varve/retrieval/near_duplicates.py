"""Pairs of rows whose vectors are at least as near as a threshold, and the groups that they form.

Few vectors are all compared, in blocks of the triangle; of many, an index proposes candidates, whose exact scores
decide. Knows nothing of texts. Invariants: a pair is returned once, and its score reaches the threshold; vectors of the
same row are no pair; memory is bounded by the blocks, one number per row and, with an index, 8 bytes per pair.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.indexing.metric import Metric
from varve.indexing.neighbours import NONE
from varve.indexing.scores import block_scores, pair_scores, prepare
from varve.indexing.source import IndexSource
from varve.monitoring.progress_line import clock_time
from varve.retrieval.collection import Collection
from varve.retrieval.exact_search import available_cores
from varve.retrieval.groups import Groups
from varve.retrieval.row_numbers import locate, read_rows

COMPARED_ROWS = 50_000  # of so many vectors all pairs are compared
_COMPARED_BYTES = 2**30
_ROWS, _COLUMNS = 1024, 4096  # of a block of the triangle
_PAIRS_AT_ONCE = 16_384
_SECONDS = 8000 / 1e12 / 384  # of a core, for a pair of vectors and a dimension
_FIRST_K, _LAST_K = 16, 4096
_QUERIES_AT_ONCE = 256
_CANDIDATES_AT_ONCE = 50_000  # pairs whose vectors are in memory at once
_SLACK = 0.05  # by which the score of an index may be lower than the exact one

SCHEMA = pa.schema(
    [("position", pa.int64()), ("shard", pa.int32()), ("row", pa.int64()), ("other_position", pa.int64()),
     ("other_shard", pa.int32()), ("other_row", pa.int64()), ("score", pa.float32())]
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """N pairs: positions in ascending order of the two, and scores."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.one)

    def select(self, kept: NDArray) -> "Pairs":
        """Some of the pairs: a mask or their numbers."""
        return Pairs(self.one[kept], self.other[kept], self.scores[kept])


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """The result.

    Attributes:
        num_vectors: that were compared.
        num_pairs: that reach the threshold.
        num_groups: of rows that pairs connect.
        num_rows: in these groups.
        largest: rows of the largest group.
        through_index: an index proposed the candidates, so pairs may be missing.
        first: the pairs that were found first, with the columns of `SCHEMA`.
    """

    num_vectors: int
    num_pairs: int
    num_groups: int
    num_rows: int
    largest: int
    through_index: bool
    first: pa.Table


def find_near_duplicates(
    collection: Collection,
    threshold: float,
    *,
    num_first: int = 10,
    write: Callable[[pa.Table], None] = lambda _pairs: None,
    compared_rows: int = COMPARED_ROWS,
) -> NearDuplicates:
    """Find all pairs with a score of at least `threshold`.

    Args:
        collection: of dense vectors; its index, if it has one, is used for many vectors.
        threshold: a score, such as a cosine.
        num_first: pairs to return.
        write: called with the pairs, a table at a time, with the columns of `SCHEMA`.
        compared_rows: of up to so many vectors all pairs are compared.

    Raises:
        JobError: the vectors are not dense, or are many and there is no index; the threshold is NaN.
        RunError: the output or the index cannot be read.
    """
    if math.isnan(threshold):
        msg = f"near duplicates of at least {threshold}: expected a score, such as 0.95"
        raise JobError(msg)
    source = collection.source
    through_index = _needs_index(collection, compared_rows)
    rows = locate(source, np.arange(source.num_vectors)).numbers
    groups, num_pairs, first = Groups(collection.output.manifest.num_rows), 0, [SCHEMA.empty_table()]
    found = _indexed_pairs(collection, threshold) if through_index else _all_pairs(source, threshold)
    for pairs in found:
        kept = pairs.select(rows[pairs.one] != rows[pairs.other])
        if not len(kept):
            continue
        table = _tabulate(collection, kept, rows)
        write(table)
        if num_pairs < num_first:
            first.append(table.slice(0, num_first - num_pairs))
        num_pairs += len(kept)
        groups.join(rows[kept.one], rows[kept.other])
    sizes = groups.sizes()
    return NearDuplicates(
        num_vectors=source.num_vectors,
        num_pairs=num_pairs,
        num_groups=len(sizes),
        num_rows=int(sizes.sum()),
        largest=int(sizes.max(initial=0)),
        through_index=through_index,
        first=pa.concat_tables(first),
    )


def _needs_index(collection: Collection, compared_rows: int) -> bool:
    """Whether there are too many vectors to compare all.

    Raises:
        JobError: the vectors are not dense, or there are too many and no index.
    """
    source = collection.source
    if not collection.is_dense:
        msg = f"--near-duplicates needs a dense feature: {collection.column.name} has {collection.column.form} vectors"
        raise JobError(msg)
    num_vectors, width = source.num_vectors, source.width
    if num_vectors <= compared_rows and 4 * num_vectors * width <= _COMPARED_BYTES:
        return False
    if collection.index is None:
        cores = available_cores()
        seconds = _SECONDS * num_vectors**2 * width / cores
        path = collection.output.storage.uri
        msg = (
            f"--near-duplicates: comparing all pairs of {num_vectors:,} vectors takes about {clock_time(seconds)} on "
            f"the {cores} core(s) of this machine. Build an index, and pass it with --index:\n"
            f"  varve index {path} --feature {collection.column.name} --to faiss:{path}-index"
        )
        raise JobError(msg)
    return True


def _all_pairs(source: IndexSource, threshold: float) -> Iterator[Pairs]:
    """The pairs of all vectors, which are held in memory."""
    blocks = [block for part in range(source.num_parts) for _, block in source.blocks(part)]
    arrays = [block for block in blocks if isinstance(block, np.ndarray)]
    vectors = prepare(np.concatenate(arrays), source.metric) if arrays else np.zeros((0, source.width), np.float32)
    assert isinstance(vectors, np.ndarray)
    yield from near_pairs(vectors, threshold, source.metric)


def near_pairs(vectors: NDArray[np.float32], threshold: float, metric: Metric) -> Iterator[Pairs]:
    """The pairs of vectors in memory whose score reaches the threshold, a block of the triangle at a time.

    Scores below `threshold` plus the rounding error are exact; the higher ones are rounded.

    Args:
        vectors: (N, width) float32, prepared (`scores.prepare`).
        threshold: a score.
        metric: how they are compared.
    """
    for first in range(0, len(vectors), _ROWS):
        for start in range(first, len(vectors), _COLUMNS):
            scores, error = block_scores(vectors[first : first + _ROWS], vectors[start : start + _COLUMNS], metric)
            near = scores >= threshold - error
            near &= np.arange(start, start + scores.shape[1]) > np.arange(first, first + len(scores))[:, None]
            one, other = np.nonzero(near)
            yield _decide(Pairs(one + first, other + start, scores[one, other]), vectors, threshold, error, metric)


def _decide(pairs: Pairs, vectors: NDArray[np.float32], threshold: float, error: float, metric: Metric) -> Pairs:
    """The pairs that reach the threshold; of close ones the exact scores decide."""
    close = np.flatnonzero(pairs.scores < threshold + error)
    scores = pairs.scores.copy()
    for at in range(0, len(close), _PAIRS_AT_ONCE):
        some = close[at : at + _PAIRS_AT_ONCE]
        scores[some] = pair_scores(vectors[pairs.one[some]], vectors[pairs.other[some]], metric)
    return Pairs(pairs.one, pairs.other, scores).select(scores >= threshold)


def _indexed_pairs(collection: Collection, threshold: float) -> Iterator[Pairs]:
    """The pairs that the index proposes, with exact scores."""
    known = np.zeros(0, np.int64)
    for candidates in _gather(_candidates(collection, threshold)):
        codes = np.setdiff1d(candidates, known, assume_unique=True)
        known = np.union1d(known, codes)
        one, other = np.divmod(codes, collection.num_vectors)
        positions, inverse = np.unique(np.concatenate([one, other]), return_inverse=True)
        vectors = prepare(collection.source.dense_at(positions), collection.source.metric)
        assert isinstance(vectors, np.ndarray)
        scores = np.zeros(len(codes), np.float32)
        firsts, seconds = inverse[: len(one)], inverse[len(one) :]
        for at in range(0, len(codes), _PAIRS_AT_ONCE):
            some = slice(at, at + _PAIRS_AT_ONCE)
            scores[some] = pair_scores(vectors[firsts[some]], vectors[seconds[some]], collection.source.metric)
        yield Pairs(one, other, scores).select(scores >= threshold)


def _gather(candidates: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Distinct, ascending candidates in batches of about `_CANDIDATES_AT_ONCE`."""
    waiting = np.zeros(0, np.int64)
    for more in candidates:
        waiting = np.union1d(waiting, more)
        if len(waiting) >= _CANDIDATES_AT_ONCE:
            yield waiting
            waiting = np.zeros(0, np.int64)
    if len(waiting):
        yield waiting


def _candidates(collection: Collection, threshold: float) -> Iterator[NDArray[np.int64]]:
    """Pairs as one number, smaller position x N + larger position: the neighbours of each vector in the index."""
    for part in range(collection.source.num_parts):
        for first, block in collection.source.blocks(part):
            assert isinstance(block, np.ndarray)
            for at in range(0, len(block), _QUERIES_AT_ONCE):
                queries = block[at : at + _QUERIES_AT_ONCE]
                positions = np.arange(first + at, first + at + len(queries))
                yield _near(collection, queries, positions, threshold)


def _near(
    collection: Collection, queries: NDArray[np.float32], positions: NDArray[np.int64], threshold: float
) -> NDArray[np.int64]:
    """The candidates of some vectors; those with many neighbours are searched again, for more."""
    lowest, k = threshold - _SLACK * max(1.0, abs(threshold)), _FIRST_K
    codes: list[NDArray[np.int64]] = []
    while len(queries):
        found = collection.nearest(queries, k)
        near = (found.positions != NONE) & (found.scores >= lowest) & (found.positions != positions[:, None])
        query_of, slot = np.nonzero(near)
        one, other = positions[query_of], found.positions[query_of, slot]
        codes.append(np.minimum(one, other) * collection.num_vectors + np.maximum(one, other))
        more = (found.positions[:, -1] != NONE) & (found.scores[:, -1] >= lowest)
        if k >= min(_LAST_K, collection.num_vectors):
            break
        queries, positions, k = queries[more], positions[more], 4 * k
    return np.unique(np.concatenate(codes)) if codes else np.zeros(0, np.int64)


def _tabulate(collection: Collection, pairs: Pairs, rows: NDArray[np.int64]) -> pa.Table:
    one, other = (read_rows(collection.output, rows[positions], ()) for positions in (pairs.one, pairs.other))
    columns = [pairs.one, one["shard"], one["row"], pairs.other, other["shard"], other["row"], pairs.scores]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True))).cast(SCHEMA)
