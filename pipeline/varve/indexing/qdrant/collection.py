"""One collection of a Qdrant server: created, filled, counted, indexed, read.

Knows nothing of outputs and of the alias. Invariants: every operation may be repeated; what was added is what the
server counts.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError
from varve.indexing.qdrant.connection import NotCompletedError, read_json, request
from varve.indexing.qdrant.qdrant_kind import Graph
from varve.indexing.rows import POSITION

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdrant_client import QdrantClient

T = TypeVar("T")

METADATA = "varve"  # the key of Varve's metadata of a collection
# Segments above this size get a graph. Qdrant's own 10 MB leave small indexes, and the last segments of large ones,
# without a graph.
_INDEXING_THRESHOLD_KB = 100
_READ_POINTS = 256
_FIRST_POLL_S, _LAST_POLL_S = 0.05, 2.0
_GREEN_POLLS = 2  # in succession: right after a change, the optimizer may not have noticed it
_STALL_S = 1800.0


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, by the URL of its server and its name."""

    url: str
    name: str

    def _request(self, call: "Callable[[QdrantClient], T]") -> T:
        return request(self.url, call)

    def metadata(self, *, patient: bool = True) -> dict[str, Any] | None:
        """Varve's metadata of the collection; None if it does not exist, {} if another program made it."""
        info = read_json(self.url, f"/collections/{self.name}", patient=patient)
        return None if info is None else (info["config"].get("metadata") or {}).get(METADATA, {})

    def create(self, params: dict[str, Any]) -> None:
        """Create the collection without a graph, unless it exists, and the index that counts positions.

        Args:
            params: `vectors_config` and `sparse_vectors_config` of `QdrantClient.create_collection`.
        """
        from qdrant_client import models  # noqa: PLC0415

        options = {**params, "hnsw_config": models.HnswConfigDiff(m=0), "metadata": {METADATA: {"state": "building"}}}
        try:
            self._request(lambda client: client.create_collection(self.name, **options))
        except RunError:
            if not self.metadata():  # else it exists: an earlier attempt, or another worker, created it
                raise
        schema = models.PayloadSchemaType.INTEGER
        self._request(lambda client: client.create_payload_index(self.name, POSITION, schema, wait=True))

    def upsert(self, batch: Any) -> None:
        """Write points; a point that exists is replaced by the same one."""

        def write(client: "QdrantClient") -> None:
            if client.upsert(self.name, batch, wait=True).status.value != "completed":
                raise NotCompletedError

        self._request(write)

    def count(self, start: int, stop: int) -> int:
        """Number of points with a position in [start, stop), exactly."""
        from qdrant_client import models  # noqa: PLC0415

        within = models.FieldCondition(key=POSITION, range=models.Range(gte=start, lt=stop))
        where = models.Filter(must=[within])
        return self._request(lambda client: client.count(self.name, count_filter=where, exact=True)).count

    def complete_ranges(self, starts: NDArray[np.int64]) -> set[int]:
        """Numbers i of the ranges [starts[i], starts[i + 1]) all of whose positions have a point.

        Ranges are counted together and divided where some are missing, so a collection that is complete or empty
        costs one request.
        """
        complete: set[int] = set()
        groups = [(0, len(starts) - 1)]
        while groups:
            first, last = groups.pop()
            expected = int(starts[last] - starts[first])
            found = self.count(int(starts[first]), int(starts[last])) if expected else 0
            if found == expected:
                complete |= {*range(first, last)}
            elif found and last - first > 1:
                middle = (first + last) // 2
                groups += [(first, middle), (middle, last)]
            elif not found:
                complete |= set((first + np.flatnonzero(np.diff(starts[first : last + 1]) == 0)).tolist())
        return complete

    def points(self, positions: NDArray[np.int64], *, vectors: bool) -> Iterator[Any]:
        """The points of ascending, different positions, in their order.

        Raises:
            RunError: one is missing.
        """
        for start in range(0, len(positions), _READ_POINTS):
            asked = positions[start : start + _READ_POINTS].tolist()
            found = {
                point.payload[POSITION]: point for point in self._request(partial(_scroll, self.name, asked, vectors))
            }
            if missing := [position for position in asked if position not in found]:
                msg = f"{self.url}: the collection {self.name} has no point of position {missing[0]}"
                raise RunError(msg)
            yield from (found[position] for position in asked)

    def build(self, graph: Graph, num_vectors: int, vector_bytes: float, *, sparse: bool) -> None:
        """Build the graph, and wait until the server has finished it.

        Raises:
            RunError: the server reports an error, makes no progress, or leaves large segments without a graph.
        """
        change = partial(_change_index, self.name, graph, sparse)
        self._request(change)
        info = self._wait_until_green(change)
        is_large = num_vectors * vector_bytes > 1024 * _INDEXING_THRESHOLD_KB * max(1, info.segments_count)
        if graph.m and is_large and not info.indexed_vectors_count:
            msg = (
                f"{self.url}: {self.name} is ready, but none of its {num_vectors:,} vectors is in a graph. "
                "See the log of the server"
            )
            raise RunError(msg)

    def _wait_until_green(self, change: "Callable[[QdrantClient], None]") -> Any:
        pause_s, seen, greens = _FIRST_POLL_S, None, 0
        changed_at = time.monotonic()
        while True:
            info = self._request(lambda client: client.get_collection(self.name))
            if info.status.value == "red":
                msg = f"{self.url}: the optimizer of {self.name} failed: {info.optimizer_status}"
                raise RunError(msg)
            if info.status.value == "grey":  # after a restart, the optimizer waits for an update
                self._request(change)
            greens = greens + 1 if info.status.value == "green" else 0
            if greens == _GREEN_POLLS:
                return info
            state = (info.status, info.indexed_vectors_count, info.segments_count)
            changed_at, seen = (changed_at, seen) if state == seen else (time.monotonic(), state)
            if time.monotonic() - changed_at > _STALL_S:
                msg = (
                    f"{self.url}: {self.name} is {info.status.value} without progress for {_STALL_S:.0f} s: "
                    f"{info.indexed_vectors_count} vectors are in the graph. See the log of the server"
                )
                raise RunError(msg)
            time.sleep(pause_s)
            pause_s = min(_LAST_POLL_S, pause_s * 1.5)

    def search(self, queries: Sequence[Any], k: int, using: str | None, setting: dict[str, int]) -> list[list[Any]]:
        """The scored points of each query, with their positions as payload."""
        from qdrant_client import models  # noqa: PLC0415

        params = _search_params(setting)
        searches = [
            models.QueryRequest(query=query, using=using, limit=k, with_payload=[POSITION], params=params)
            for query in queries
        ]
        answers = self._request(lambda client: client.query_batch_points(self.name, searches))
        return [answer.points for answer in answers]

    def save_metadata(self, content: dict[str, Any]) -> None:
        """Replace Varve's metadata of the collection."""
        plain = json.loads(json.dumps(content))
        self._request(lambda client: client.update_collection(self.name, metadata={METADATA: plain}))

    def delete(self) -> None:
        """Delete the collection; one that does not exist is no error."""
        self._request(lambda client: client.delete_collection(self.name))


def _scroll(name: str, positions: list[int], vectors: bool, client: "QdrantClient") -> list[Any]:
    from qdrant_client import models  # noqa: PLC0415

    where = models.Filter(must=[models.FieldCondition(key=POSITION, match=models.MatchAny(any=positions))])
    return client.scroll(name, where, limit=len(positions), with_payload=True, with_vectors=vectors)[0]


def _change_index(name: str, graph: Graph, sparse: bool, client: "QdrantClient") -> None:
    from qdrant_client import models  # noqa: PLC0415

    int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    client.update_collection(
        name,
        hnsw_config=models.HnswConfigDiff(m=graph.m, ef_construct=graph.ef_construct),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=_INDEXING_THRESHOLD_KB),
        quantization_config=models.ScalarQuantization(scalar=int8) if graph.int8 else models.Disabled.DISABLED,
        vectors_config=None if sparse else {"": models.VectorParamsDiff(on_disk=graph.int8)},
    )


def _search_params(setting: dict[str, int]) -> Any:
    from qdrant_client import models  # noqa: PLC0415

    oversampling = setting.get("oversampling")
    rescored = models.QuantizationSearchParams(rescore=True, oversampling=oversampling) if oversampling else None
    return models.SearchParams(hnsw_ef=setting.get("hnsw_ef"), quantization=rescored)
