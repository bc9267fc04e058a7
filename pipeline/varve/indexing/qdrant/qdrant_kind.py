"""The kinds of index that Qdrant builds: `exact`, `hnsw`, `hnsw,m=32,ef=256`, `hnsw,int8`.

Knows nothing of servers. Invariant: the name of a kind is all that is needed to build it.
"""

import re
from dataclasses import dataclass
from typing import Self

from varve.errors import JobError
from varve.indexing.source import DENSE, LATE, SPARSE, IndexSource
from varve.indexing.target import Kind

EXACT = "exact"
_M, _EF = 16, 100  # Qdrant's defaults
_NAME = re.compile(r"hnsw(?:,m=([1-9]\d{0,2}))?(?:,ef=([1-9]\d{1,3}))?(,int8)?")
_EFS = (32, 64, 128, 256, 512)
# Exact late interaction of more texts takes seconds per query.
_MAX_EXACT_LATE = 20_000
_LINK_BYTES, _LINKS_OF_LEVEL_0, _ID_BYTES = 4, 2, 24  # of the graph; of the ids, versions and the mapping


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph index.

    Attributes:
        m: links per vector; 0: no graph, each search compares all vectors.
        ef_construct: candidates that are compared while a vector is added.
        int8: the vectors are quantized in memory and rescored with the exact ones, which are mapped from disk.
    """

    m: int = _M
    ef_construct: int = _EF
    int8: bool = False

    @classmethod
    def parse(cls, name: str) -> Self:
        """The graph of the name of a kind.

        Raises:
            JobError: there is no such kind.
        """
        if name == EXACT:
            return cls(m=0)
        match = _NAME.fullmatch(name)
        if not match:
            msg = f"kind {name!r} does not exist in Qdrant: expected exact, hnsw, hnsw,m=32,ef=256 or hnsw,int8"
            raise JobError(msg)
        return cls(int(match[1] or _M), int(match[2] or _EF), bool(match[3]))

    def bytes_per_vector(self, stored_bytes: float, num_values: float) -> float:
        """Memory of one vector, given its size and its number of values."""
        vector = num_values if self.int8 else stored_bytes
        return vector + _LINK_BYTES * _LINKS_OF_LEVEL_0 * self.m * 1.1 + _ID_BYTES

    @property
    def settings(self) -> tuple[dict[str, int], ...]:
        """Parameters of the search, from the fastest to the most accurate."""
        if not self.m:
            return ({},)
        if self.int8:
            return tuple({"hnsw_ef": ef, "oversampling": 2 if ef < _EFS[-1] else 4} for ef in _EFS)
        return tuple({"hnsw_ef": ef} for ef in _EFS)


def kinds_of(source: IndexSource, asked: str) -> list[Kind]:
    """The kinds that may be built of a feature, or the one that is asked for.

    Raises:
        JobError: the asked one does not exist, or does not fit the feature.
    """
    names = _candidates(source) if asked == "auto" else [asked]
    graphs = {name: Graph.parse(name) for name in names}
    if source.kind != DENSE and any(graph.int8 or (source.kind == SPARSE and graph.m) for graph in graphs.values()):
        msg = f"kind {asked!r} is not for {source.column.name}, a {source.kind} feature: use auto or exact"
        raise JobError(msg)
    num_values = _values_per_vector(source)
    stored = num_values * (8 if source.kind == SPARSE else 2 if is_half(source) else 4)
    return [Kind(name, graph.bytes_per_vector(stored, num_values), graph.settings) for name, graph in graphs.items()]


def is_half(source: IndexSource) -> bool:
    """Whether the server stores float16: the values are float16 already, so nothing is lost."""
    return source.kind != SPARSE and source.column.dtype == "float16" and not source.metric.normalizes


def _candidates(source: IndexSource) -> list[str]:
    if source.kind == SPARSE or (source.kind == LATE and source.num_vectors <= _MAX_EXACT_LATE):
        return [EXACT]
    graphs = ["hnsw", "hnsw,m=32,ef=256"]
    return graphs if source.kind == LATE else [*graphs, "hnsw,int8"]


def _values_per_vector(source: IndexSource) -> float:
    """Numbers that a vector holds; of sparse and late ones, the mean of one part."""
    if source.kind == DENSE:
        return source.width
    part = int(source.part_of(source.sample_positions(1, seed=0))[0])
    vectors = source.read(part, ()).vectors
    values = vectors.values.size if source.kind == LATE else len(vectors.ids.values)  # pyright: ignore[reportAttributeAccessIssue]
    return values / len(vectors)
