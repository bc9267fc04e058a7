# ruff: noqa: ARG002 (the arguments are those of `Target`)
"""Collections of a Qdrant server as the target of an index.

The points of an index are in a collection NAME__FFFFFFFF (the fingerprint of its source and settings), which has no
graph while parts are added. Clients use the alias NAME, which is switched from the replaced collection to the new one
in one request. The record of the index is metadata of its collection.

Invariants: no state is kept outside the server: a part is added if the server counts all its positions; points have
ids that are functions of their rows, so a part that is added twice is there once; the alias never points to an
unfinished collection; collections that Varve did not make are not touched.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.qdrant.address import QdrantAddress
from varve.indexing.qdrant.collection import Collection
from varve.indexing.qdrant.connection import request
from varve.indexing.qdrant.content import compare, digest_of, missing_positions
from varve.indexing.qdrant.keys import check_keys
from varve.indexing.qdrant.layout import Layout, vector_params
from varve.indexing.qdrant.payload import is_supported
from varve.indexing.qdrant.points import batches
from varve.indexing.qdrant.qdrant_kind import Graph, is_half, kinds_of
from varve.indexing.qdrant.qdrant_searcher import QdrantSearcher
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.request import make_request
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, LATE, SPARSE, IndexSource
from varve.indexing.target import Kind

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_OLDEST_SERVER = (1, 16)  # the first with metadata of collections
_MAX_WIDTH = 65_536


@dataclass(frozen=True)
class QdrantTarget:
    """A name on a Qdrant server; see `indexing.target.Target`.

    Attributes:
        destination: HOST[:PORT]/NAME[?https=true].
        settings: of an index that is built.
    """

    destination: str
    settings: Index | None = None

    def __post_init__(self) -> None:
        """Refuse a malformed address.

        Raises:
            JobError: see `QdrantAddress.parse`.
        """
        QdrantAddress.parse(self.destination)

    @property
    def _at(self) -> QdrantAddress:
        return QdrantAddress.parse(self.destination)

    @property
    def address(self) -> str:
        """`qdrant://HOST:PORT/NAME`."""
        return str(self._at)

    @property
    def accepts(self) -> frozenset[str]:
        """All features."""
        return frozenset({DENSE, SPARSE, LATE})

    def published(self) -> IndexRecord | None:
        """The record of the collection that the alias points to.

        Raises:
            JobError: the key is refused.
            RunError: the server cannot be reached, or the record cannot be read.
        """
        return self._record(Collection(self._at.url, self._at.name), patient=False)

    def _record(self, collection: Collection, *, patient: bool) -> IndexRecord | None:
        content = (collection.metadata(patient=patient) or {}).get("record")
        where = f"{collection.url}: the metadata of {collection.name}"
        return None if content is None else IndexRecord.decode(json.dumps(content).encode(), where)

    def check(self, source: IndexSource) -> None:
        """Refuse an old server, a name that is in use, a column that JSON cannot hold, and a key with duplicates.

        Raises:
            JobError: one of these.
            RunError: the server cannot be reached.
        """
        self._check_server()
        if source.kind != SPARSE and source.width > _MAX_WIDTH:
            msg = f"{source.column.name} has {source.width:,} dimensions: Qdrant allows {_MAX_WIDTH:,}"
            raise JobError(msg)
        for field in Layout.of(source).schema:
            if not is_supported(field.type):
                msg = f"column {field.name} is {field.type}, which a Qdrant payload cannot hold: leave it out of --keep"
                raise JobError(msg)
        if key := self._key:
            check_keys(source, key)

    @property
    def _key(self) -> str | None:
        return self.settings.key if self.settings else None

    def _check_server(self) -> None:
        url, name = self._at.url, self._at.name
        version = request(url, lambda client: client.info(), patient=False).version
        if tuple(int(number) for number in version.split("-")[0].split(".")[:2]) < _OLDEST_SERVER:
            msg = f"{url} is Qdrant {version}: expected {'.'.join(map(str, _OLDEST_SERVER))} or later"
            raise JobError(msg)
        if name in {each.name for each in request(url, lambda client: client.get_collections()).collections}:
            msg = (
                f"{self.address}: {name} is a collection. Varve makes {name} an alias of its own collection: choose "
                "another name, or delete the collection"
            )
            raise JobError(msg)
        replaced = self._alias_of()
        if replaced and not Collection(url, replaced).metadata():
            msg = (
                f"{self.address}: {name} is an alias of the collection {replaced}, which Varve did not make: choose "
                "another name, or delete the alias"
            )
            raise JobError(msg)

    def _alias_of(self) -> str | None:
        """The collection that the alias points to."""
        aliases = request(self._at.url, lambda client: client.get_aliases()).aliases
        return {each.alias_name: each.collection_name for each in aliases}.get(self._at.name)

    def begin(self, request: IndexRequest) -> None:
        """Do nothing: `train` creates the collection, whose name is a function of the request."""

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """See `qdrant_kind.kinds_of`."""
        return kinds_of(source, self.settings.kind if self.settings else "auto")

    def _collection(self, source: IndexSource) -> Collection:
        assert self.settings is not None, "only an index that is built has a staged collection"
        fingerprint = make_request(source, self.settings).fingerprint
        return Collection(self._at.url, f"{self._at.name}__{fingerprint[:8]}")

    def train(self, kind: Kind, source: IndexSource) -> None:
        """Create the collection, unless it exists. All kinds are graphs of the same points."""
        self._collection(source).create(vector_params(source))

    def added(self, kind: Kind, source: IndexSource) -> set[int]:
        """The parts all of whose positions are counted by the server."""
        return self._collection(source).complete_ranges(source.starts)

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:
        """Upsert the points of one part, and wait for each batch."""
        collection = self._collection(source)
        for batch in batches(rows, self._key, Layout.of(source).vector):
            collection.upsert(batch)

    def pieces(self, kind: Kind, source: IndexSource) -> int:
        """1: the server builds the graph."""
        return 1

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:
        """Count the points, build the graph, and compare some points with the source.

        Raises:
            RunError: the server failed, or points are missing or differ.
        """
        collection, graph = self._collection(source), Graph.parse(kind.name)
        self._check_count(collection, source)
        stored_bytes = source.width * (2 if is_half(source) else 4)
        collection.build(graph, source.num_vectors, stored_bytes, sparse=source.kind == SPARSE)
        self._check_count(collection, source)
        compare(QdrantSearcher(collection, Layout.of(source)), source)

    def _check_count(self, collection: Collection, source: IndexSource) -> None:
        found = collection.count(0, source.num_vectors)
        if found != source.num_vectors:
            msg = (
                f"{self._at.url}: {collection.name} has {found:,} points, expected {source.num_vectors:,}. "
                "Delete the collection and build the index again"
            )
            raise RunError(msg)

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[QdrantSearcher]:
        """The collection, before the alias points to it."""
        yield QdrantSearcher(self._collection(source), Layout.of(source))

    def publish(
        self,
        kind: Kind,
        source: IndexSource,
        record: IndexRecord,
        spread: Spread = in_threads,
    ) -> IndexRecord:
        """Write the record as metadata of the collection, then switch the alias in one request."""
        collection, replaced = self._collection(source), self._alias_of()
        if replaced == collection.name and (published := self._record(collection, patient=True)):
            return published
        layout = Layout.of(source)
        details = {"collection": collection.name, "alias": self._at.name, "replaced": replaced}
        digest = digest_of(QdrantSearcher(collection, layout), source.num_vectors)
        record = replace(record, details={**details, "layout": layout.to_json(), "sample_sha256": digest})
        collection.save_metadata({"record": asdict(record)})
        self._switch(collection.name, replaced)
        return record

    def _switch(self, new: str, replaced: str | None) -> None:
        from qdrant_client import models  # noqa: PLC0415

        name = self._at.name
        delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
        create = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=new, alias_name=name))
        actions = [delete, create] if replaced else [create]

        def switch(client: "QdrantClient") -> bool:
            return client.update_collection_aliases(actions)

        request(self._at.url, switch)

    def clean(self, record: IndexRecord) -> None:
        """Delete the collection that the published one replaced."""
        name = record.details.get("replaced")
        if name and name != self._alias_of() and Collection(self._at.url, name).metadata():
            Collection(self._at.url, name).delete()

    def verify(self, record: IndexRecord) -> list[str]:
        """Compare the alias, the number of points and the content of some of them with the record."""
        collection = Collection(self._at.url, record.details["collection"])
        current = self._alias_of()
        if current != collection.name:
            return [f"{self.address} is an alias of {current or 'nothing'}, expected {collection.name}"]
        expected = record.request.num_vectors
        found = collection.count(0, expected)
        if found != expected:
            missing = missing_positions(collection, expected)
            msg = f"{self.address} has {found:,} points, expected {expected:,}: missing are the positions"
            return [f"{msg} {', '.join(map(str, missing))}{', ...' if len(missing) < expected - found else ''}"]
        try:
            digest = digest_of(QdrantSearcher(collection, Layout.from_json(record.details["layout"])), expected)
        except RunError as e:
            return [str(e)]
        changed = digest != record.details["sample_sha256"]
        return [f"{self.address}: the vectors of sampled positions have changed since the publication"] * changed

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[QdrantSearcher]:
        """The published collection."""
        collection = Collection(self._at.url, record.details["collection"])
        yield QdrantSearcher(collection, Layout.from_json(record.details["layout"]))
