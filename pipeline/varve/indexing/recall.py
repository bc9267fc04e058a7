"""Measures the recall of an index against exact neighbours.

Queries are rows of the index itself, each left out of its own answers (leave-one-out), and, where the user has them,
real queries. Knows no library of indexes. Invariants: a found vector counts if its exact score is at least that of the
k-th exact neighbour, so one of several equally near vectors is no miss; a position that is returned twice counts once.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.indexing.neighbours import NONE, Neighbours
from varve.indexing.record import Measurement
from varve.indexing.rows import Vectors, take
from varve.indexing.scores import pair_scores, prepare, prepare_queries
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind, Searcher

K, DEEP_K = 10, 100
DEPTH = 128  # exact neighbours that are kept of each query
_Z = 1.96  # 95 % of a normal distribution
_TIE = 1e-6  # relative difference of scores that are equal
_QUERIES_AT_ONCE = 64
_TITLES = (
    "index", "setting", "queries", "recall@1", "recall@10", "95 % interval", "recall@100", "p50", "p99", "bytes/vector",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProofQueries:
    """What an index is asked.

    Attributes:
        name: rows, or the file that the queries are from.
        vectors: Q queries.
        positions: (Q,) of the queries in the index, each left out of its own answers; None if they are not in it.
    """

    name: str
    vectors: Vectors
    positions: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class Proof:
    """Queries and their exact neighbours, `DEPTH` of each."""

    queries: ProofQueries
    exact: Neighbours


def prove(
    searcher: Searcher, source: IndexSource, kind: Kind, proofs: Sequence[Proof], target: float
) -> tuple[list[Measurement], dict[str, int] | None]:
    """Raise the setting of the search until the recall of all proofs is enough.

    Args:
        searcher: the index.
        source: its vectors.
        kind: its kind, whose settings are tried in order.
        proofs: at least one.
        target: that the lower end of the 95 % interval of recall@10 must reach.

    Returns:
        All measurements, and the setting that is enough; None if none is. At that setting, or else at the last one,
        recall@100 is measured too.
    """
    measurements: list[Measurement] = []
    for setting in kind.settings:
        of_setting = [measure(searcher, source, kind, proof, setting) for proof in proofs]
        reached = all(m.low >= target for m in of_setting)
        if reached or setting == kind.settings[-1]:
            of_setting = [measure(searcher, source, kind, proof, setting, deep=True) for proof in proofs]
            reached = all(m.low >= target for m in of_setting)
        measurements += of_setting
        if reached:
            return measurements, dict(setting)
    return measurements, None


def measure(
    searcher: Searcher, source: IndexSource, kind: Kind, proof: Proof, setting: Mapping[str, int], *, deep: bool = False
) -> Measurement:
    """Ask every query once, one at a time, for 10 neighbours; with `deep` also for 100."""
    found, times_ms = _ask(searcher, proof.queries, K, setting)
    shares = _share_found(found, proof, source, K)
    recall = {"1": float(_share_found(found[:, :1], proof, source, 1).mean()), "10": float(shares.mean())}
    if deep:
        deep_found, _ = _ask(searcher, proof.queries, DEEP_K, setting)
        recall["100"] = float(_share_found(deep_found, proof, source, DEEP_K).mean())
    margin = _Z * float(shares.std()) / len(shares) ** 0.5
    return Measurement(
        kind=kind.name,
        bytes_per_vector=round(kind.bytes_per_vector, 2),
        setting=dict(setting),
        recall={k: round(value, 5) for k, value in recall.items()},
        low=round(max(0.0, recall["10"] - margin), 5),
        high=round(min(1.0, recall["10"] + margin), 5),
        p50_ms=round(float(np.percentile(times_ms, 50)), 4),
        p99_ms=round(float(np.percentile(times_ms, 99)), 4),
        queries=proof.queries.name,
        num_queries=len(shares),
    )


def _ask(
    searcher: Searcher, queries: ProofQueries, k: int, setting: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """((Q, k) positions without the queries' own ones, (Q,) milliseconds)."""
    asked = k if queries.positions is None else k + 1
    found, times_ms = np.full((len(queries.vectors), asked), NONE, np.int64), np.zeros(len(queries.vectors))
    for query in range(len(queries.vectors)):
        one = take(queries.vectors, slice(query, query + 1))
        started = time.perf_counter()
        answer = searcher.search(one, asked, setting).positions[0]
        times_ms[query] = (time.perf_counter() - started) * 1e3
        found[query, : len(answer)] = answer
    if queries.positions is not None:  # the query's own position goes to the end, which is cut
        own = found == queries.positions[:, None]
        found = np.take_along_axis(found, np.argsort(own, axis=1, kind="stable"), axis=1)
        found[np.sort(own, axis=1)] = NONE
    return found[:, :k], times_ms


def _share_found(found: NDArray[np.int64], proof: Proof, source: IndexSource, k: int) -> NDArray[np.float64]:
    """(Q,) share of the k exact neighbours that were found; of fewer where the index has fewer vectors."""
    hits = np.zeros(len(found), np.int64)
    for start in range(0, len(found), _QUERIES_AT_ONCE):
        some = slice(start, start + _QUERIES_AT_ONCE)
        exact = Neighbours(proof.exact.positions[some], proof.exact.scores[some])
        hits[some] = _count_hits(_once(found[some]), exact, take(proof.queries.vectors, some), source, k)
    possible = np.minimum(k, (proof.exact.positions != NONE).sum(axis=1))
    return np.where(possible > 0, hits / np.maximum(possible, 1), 1.0)


def _once(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions, without repeated ones."""
    equal = found[:, :, None] == found[:, None, :]
    return np.where(np.tril(equal, -1).any(axis=2), NONE, found)


def _count_hits(
    found: NDArray[np.int64], exact: Neighbours, queries: Vectors, source: IndexSource, k: int
) -> NDArray[np.int64]:
    """(Q,) found vectors whose exact score is at least that of the k-th exact neighbour, at most k."""
    available = np.minimum(k, (exact.positions != NONE).sum(axis=1))
    kth = np.take_along_axis(exact.scores, np.maximum(available - 1, 0)[:, None], axis=1)
    lowest = kth - _TIE * np.abs(kth)
    matches = (found[:, :, None] == exact.positions[:, None, :]) & (found != NONE)[:, :, None]
    known = matches.any(axis=2)
    scores = np.where(known, np.take_along_axis(exact.scores, matches.argmax(axis=2), axis=1), -np.inf)
    # More vectors may be as near as the k-th one than exact neighbours were kept.
    tied = (found != NONE) & ~known & (exact.scores[:, -1:] >= lowest)
    if tied.any():
        query_of = np.nonzero(tied)[0]
        asked = prepare_queries(take(queries, query_of), source.metric)
        scores[tied] = pair_scores(asked, prepare(source.at(found[tied]), source.metric), source.metric)
    return np.minimum((scores >= lowest).sum(axis=1), available)


def recall_table(measurements: Sequence[Measurement]) -> str:
    """The measurements as lines of text, in the order in which they were made."""
    lines: list[tuple[str, ...]] = [_TITLES]
    for m in measurements:
        setting = " ".join(f"{name}={value}" for name, value in m.setting.items()) or "-"
        deep = f"{m.recall['100']:.4f}" if "100" in m.recall else "-"
        lines.append(
            (
                m.kind, setting, f"{m.num_queries:,} {m.queries}", f"{m.recall['1']:.4f}", f"{m.recall['10']:.4f}",
                f"{m.low:.4f} - {m.high:.4f}", deep, f"{m.p50_ms:.2f} ms", f"{m.p99_ms:.2f} ms",
                f"{m.bytes_per_vector:,.0f}",
            )
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )
