"""The kinds of index that the FAISS target builds: their names, sizes and settings.

Knows nothing of files, and does not import faiss. Invariant: a name is the string of FAISS's index factory.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from varve.errors import JobError
from varve.indexing.target import Kind

SUPPORTED = "Flat, SQ8, SQfp16, HNSW{M}[,Flat|SQ8|SQfp16], IVF{n},Flat|SQ8|SQfp16|PQ{m}x{b}|RaBitQ"
_FLAT = re.compile(r"(Flat|SQ8|SQfp16)")
_GRAPH = re.compile(r"HNSW(\d{1,3})(?:,(Flat|SQ8|SQfp16))?")
_LISTS = re.compile(r"IVF(\d{1,7})(_HNSW32)?,(Flat|SQ8|SQfp16|RaBitQ|PQ(\d{1,4})x(\d{1,2}))")

_FLAT_BELOW_ROWS = 20_000
_MAX_LISTS = 2**17
_GRAPH_OF_CENTROIDS_ABOVE_LISTS = 2**14  # comparing a vector with every centroid takes longer than a graph from here
_LINKS_OF_CENTROIDS = 32
_LINKS = (4, 128)
_PQ_BITS = (4, 12)

_EF_SEARCH = (16, 32, 64, 128, 256, 512)
_NPROBE = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Number of lists, and candidates per neighbour whose distance is computed again from the stored vectors.
_NPROBE_RESCORE = ((16, 10), (32, 20), (64, 20), (128, 50), (256, 100), (512, 100), (1024, 100))


@dataclass(frozen=True, slots=True)
class FaissKind:
    """A kind of index.

    Attributes:
        name: of the index factory.
        family: flat (codes in the order of the positions), graph (HNSW), or lists (inverted lists).
        codec: how a vector is stored: Flat, SQ8, SQfp16, PQ{m}x{b} or RaBitQ.
        links: M of HNSW.
        num_lists: number of inverted lists.
        centroid_links: M of a graph over the centroids; 0 if each vector is compared with all centroids.
    """

    name: str
    family: Literal["flat", "graph", "lists"]
    codec: str
    links: int = 0
    num_lists: int = 0
    centroid_links: int = 0

    @classmethod
    def parse(cls, name: str) -> Self:
        """A kind by its name.

        Raises:
            JobError: the target does not build it.
        """
        if match := _FLAT.fullmatch(name):
            return cls(name, "flat", match[1])
        if match := _GRAPH.fullmatch(name):
            return cls(name, "graph", match[2] or "Flat", links=int(match[1]))
        if match := _LISTS.fullmatch(name):
            links = _LINKS_OF_CENTROIDS if match[2] else 0
            return cls(name, "lists", match[3], num_lists=int(match[1]), centroid_links=links)
        msg = f"kind: {name!r} is not an index that the FAISS target builds: expected auto, {SUPPORTED}, "
        raise JobError(msg + "such as HNSW32,SQ8 or IVF4096,SQ8")

    @property
    def rescores(self) -> bool:
        """Whether a search computes the distances of its candidates again, from stored vectors."""
        return self.codec == "RaBitQ"

    @property
    def is_exact(self) -> bool:
        """Whether the index holds the vectors themselves, in the order of the positions."""
        return self.codec == "Flat" and self.family != "lists"

    def check(self, width: int, num_vectors: int) -> None:
        """Refuse what cannot be built of this feature.

        Raises:
            JobError: the message names the bounds.
        """
        if self.family == "graph" and not _LINKS[0] <= self.links <= _LINKS[1]:
            self._refuse(f"HNSW has {self.links} links per vector, expected {_LINKS[0]} to {_LINKS[1]}")
        if self.family == "lists" and not 1 <= self.num_lists <= num_vectors:
            best = num_lists(num_vectors)
            self._refuse(f"it has {self.num_lists} lists for {num_vectors:,} vectors: expected at most one per vector, "
                         f"such as IVF{best}")  # fmt: skip
        if self.codec.startswith("PQ"):
            self._check_pq(width, num_vectors)

    def _check_pq(self, width: int, num_vectors: int) -> None:
        pieces, bits = _pq(self.codec)
        if not pieces or width % pieces:
            divisors = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
            self._refuse(f"PQ divides the {width} dimensions by {pieces}: expected one of {divisors}")
        if not _PQ_BITS[0] <= bits <= _PQ_BITS[1] or 2**bits > num_vectors:
            self._refuse(f"PQ has {bits} bits for {num_vectors:,} vectors: expected {_PQ_BITS[0]} to {_PQ_BITS[1]}, "
                         "and at least 2^bits vectors")  # fmt: skip

    def _refuse(self, reason: str) -> None:
        msg = f"kind: {self.name} cannot be built: {reason}"
        raise JobError(msg)

    def code_bytes(self, width: int) -> int:
        """Bytes of one stored vector, without its links or its id."""
        if self.codec.startswith("PQ"):
            pieces, bits = _pq(self.codec)
            return math.ceil(pieces * bits / 8)
        return {"Flat": 4 * width, "SQfp16": 2 * width, "SQ8": width, "RaBitQ": math.ceil(width / 8) + 8}[self.codec]

    def describe(self, width: int, num_vectors: int) -> Kind:
        """The kind with its size in memory per vector, and its settings.

        The vectors that RaBitQ rescores with are not counted: they stay on disk, and a search reads single ones.
        """
        size_bytes = float(self.code_bytes(width))
        if self.family == "graph":
            size_bytes += _link_bytes(self.links)
        if self.family == "lists":
            of_centroid = 4 * width + (_link_bytes(self.centroid_links) if self.centroid_links else 0)
            shared = of_centroid * self.num_lists + (4 * width << _pq(self.codec)[1] if self.codec[:2] == "PQ" else 0)
            size_bytes += 8 + shared / max(num_vectors, 1)
        return Kind(self.name, size_bytes, tuple(self._settings()))

    def _settings(self) -> Sequence[dict[str, int]]:
        if self.family == "flat":
            return [{}]
        if self.family == "graph":
            return [{"efSearch": ef} for ef in _EF_SEARCH]
        if self.rescores:
            within = [pair for pair in _NPROBE_RESCORE if pair[0] < self.num_lists] or [(self.num_lists, 100)]
            return [{"nprobe": nprobe, "rescore": rescore} for nprobe, rescore in within]
        return [{"nprobe": n} for n in [n for n in _NPROBE if n < self.num_lists] or [self.num_lists]]


def num_lists(num_vectors: int) -> int:
    """Number of inverted lists for a number of vectors: 4 √N, at most 2^17."""
    return max(1, min(int(4 * math.sqrt(num_vectors)), _MAX_LISTS, num_vectors))


def candidates(num_vectors: int) -> list[FaissKind]:
    """What `auto` tries, the cheapest build first."""
    lists = num_lists(num_vectors)
    coarse = f"IVF{lists}_HNSW{_LINKS_OF_CENTROIDS}" if lists > _GRAPH_OF_CENTROIDS_ABOVE_LISTS else f"IVF{lists}"
    names = ["Flat"] if num_vectors < _FLAT_BELOW_ROWS else []
    return [FaissKind.parse(name) for name in [*names, "HNSW32,SQ8", f"{coarse},SQ8", f"{coarse},RaBitQ"]]


def _pq(codec: str) -> tuple[int, int]:
    """(pieces, bits) of PQ{m}x{b}."""
    pieces, _, bits = codec.removeprefix("PQ").partition("x")
    return int(pieces), int(bits)


def _link_bytes(links: int) -> int:
    """2 M links in the lowest level, about M / (M - 1) above it, the level, and the start of the links."""
    return 8 * links + 16
