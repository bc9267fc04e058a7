"""The target postgresql: a table of a PostgreSQL server with pgvector.

Knows nothing of statements, which are in the other files of this folder. Invariants: a build has tables of its own
until `publish` renames them; every method may be repeated, and repeats its work after a connection was lost; a target
holds no connection and no password.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.indexing.pgvector import hnsw_index, preconditions, publication, staged_table, table_check
from varve.indexing.pgvector.address import Address
from varve.indexing.pgvector.client import psycopg
from varve.indexing.pgvector.connection import PATIENCE_S, connect, repeat
from varve.indexing.pgvector.hnsw_index import Graph, is_graph
from varve.indexing.pgvector.record_details import ids_schema, make_details, parse_details
from varve.indexing.pgvector.staged_table import StagedTable
from varve.indexing.pgvector.table_name import PARTS, TableName, exists, read_comment, resolve
from varve.indexing.pgvector.table_searcher import TableSearcher, make_searcher, server_versions
from varve.indexing.pgvector.vector_type import VectorType, choose_type
from varve.indexing.record import IndexRecord, IndexRequest
from varve.indexing.request import make_request
from varve.indexing.rows import IndexRows, SparseVectors
from varve.indexing.source import DENSE, SPARSE, IndexSource
from varve.indexing.target import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class PgvectorTarget:
    """A table of a PostgreSQL server.

    Attributes:
        destination: [USER@]HOST[:PORT]/DATABASE?table=NAME, with other parameters of libpq.
        settings: of the index that is built; None to read one.
        patience_s: seconds for which a lost connection is opened again.

    Raises:
        JobError: the destination is malformed.
    """

    destination: str
    settings: Index | None
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        Address.parse(self.destination)

    @property
    def _place(self) -> Address:
        return Address.parse(self.destination)

    @property
    def address(self) -> str:
        """The database and the table, for messages."""
        return str(self._place)

    @property
    def accepts(self) -> frozenset[str]:
        """Dense and sparse features."""
        return frozenset({DENSE, SPARSE})

    def published(self) -> IndexRecord | None:
        """The record in the comment of the table; None if Varve has not published it.

        Raises:
            RunError: the server cannot be reached or the record cannot be read.
        """
        with connect(self._place) as connection:
            return publication.published_record(connection, resolve(connection, self._place))

    def check(self, source: IndexSource) -> None:
        """Refuse vectors, columns, servers and names that cannot be used.

        Raises:
            JobError: the message names what is missing.
        """
        vector_type, graph = self._vector_type(source), self._is_graph(source)
        preconditions.check_source(source, vector_type, is_graph=graph)
        with connect(self._place) as connection:
            name = resolve(connection, self._place)
            preconditions.check_database(connection, self._place, name, vector_type, is_graph=graph)

    def begin(self, request: IndexRequest) -> None:
        """Create the ledger of the build, or find it.

        Raises:
            JobError: its name is used by another build.
        """
        settings = self._settings
        own = replace(request, settings=settings.identity(), target=settings.target)
        self._repeat(lambda connection, name: staged_table.begin(connection, name, own))

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """Flat below 20,000 vectors, else HNSW graphs; or the kind of the settings.

        Raises:
            JobError: there is no such kind.
        """
        return hnsw_index.list_kinds(self._settings.kind, source.num_vectors, self._value_bytes(source))

    def train(self, kind: Kind, source: IndexSource) -> None:  # noqa: ARG002 (all kinds have one table)
        """Create the table of the build."""
        schema = ids_schema(source)
        self._repeat(lambda c, name: staged_table.create(c, self._staged(c, name, source), schema))

    def added(self, kind: Kind, source: IndexSource) -> set[int]:  # noqa: ARG002
        """Numbers of the parts in the ledger."""
        return self._repeat(lambda c, name: staged_table.added_parts(c, self._staged(c, name, source)))

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:  # noqa: ARG002
        """Add a part in one transaction, unless it is in the ledger.

        Raises:
            JobError: the key has a null.
            RunError: a value cannot be stored, or the server does not return within `patience_s`.
        """
        self._repeat(lambda c, name: staged_table.add_part(c, self._staged(c, name, source), rows))

    def pieces(self, kind: Kind, source: IndexSource) -> int:  # noqa: ARG002
        """One: the server uses several processes itself."""
        return 1

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:  # noqa: ARG002
        """Add the primary key and the index, and update the statistics.

        Raises:
            JobError: the key is not unique.
            RunError: parts are missing.
        """
        schema, value_bytes = ids_schema(source), self._value_bytes(source)

        def work(connection: psycopg.Connection, name: TableName) -> None:
            staged = self._staged(connection, name, source)
            if staged.name != name:
                graph = Graph.parse(kind.name)
                hnsw_index.finish(connection, staged, schema, graph, source.num_vectors, value_bytes)

        self._repeat(work)

    @contextmanager
    def searcher(self, kind: Kind, source: IndexSource) -> Iterator[TableSearcher]:
        """The table of the build."""
        with connect(self._place) as connection:
            staged = self._staged(connection, resolve(connection, self._place), source)
            is_graph = Graph.parse(kind.name) is not None
            yield make_searcher(connection, staged.name, staged.vector_type, ids_schema(source), is_graph=is_graph)

    def publish(
        self,
        kind: Kind,
        source: IndexSource,
        record: IndexRecord,
        spread: Spread = in_threads,  # noqa: ARG002
    ) -> IndexRecord:
        """Rename the table of the build, and drop the previous one, in one transaction.

        Raises:
            JobError: a table of this name was not made by Varve.
            RunError: the build is missing, or other objects depend on the previous table.
        """

        def work(connection: psycopg.Connection, name: TableName) -> IndexRecord:
            staged = self._staged(connection, name, source)
            details = make_details(name, staged, ids_schema(source), kind)
            versions = record.versions | server_versions(connection)
            complete = replace(record, details=record.details | details, versions=versions)
            return publication.publish(connection, name, staged.name, complete)

        return self._repeat(work)

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002 (the published table is found by its name)
        """Drop interrupted builds of this name that began before the published one."""
        self._repeat(publication.remove_superseded)

    def verify(self, record: IndexRecord) -> list[str]:
        """Compare the table with its record; returns one line per failure."""
        return self._repeat(lambda connection, name: table_check.check_table(connection, name, record))

    @contextmanager
    def open(self, record: IndexRecord) -> Iterator[TableSearcher]:
        """The published table."""
        vector_type, schema = parse_details(record)
        with connect(self._place) as connection:
            name = resolve(connection, self._place)
            yield make_searcher(connection, name, vector_type, schema, is_graph=Graph.parse(record.kind) is not None)

    @property
    def _settings(self) -> Index:
        assert self.settings is not None, "the target was opened to be read"
        return self.settings

    def _repeat(self, work: Callable[[psycopg.Connection, TableName], T]) -> T:
        """Run work with the name of the table, again after a failure that passes."""
        place = self._place

        def attempt(connection: psycopg.Connection) -> T:
            name = resolve(connection, place)
            try:
                return work(connection, name)
            except psycopg.errors.UndefinedTable:  # another process has published this build meanwhile
                return work(connection, name)

        return repeat(place, self.patience_s, attempt)

    def _staged(self, connection: psycopg.Connection, name: TableName, source: IndexSource) -> StagedTable:
        """The table of the build, whose name every worker derives from the source and the settings.

        It is the published one if another process has published this build.
        """
        fingerprint = make_request(source, self._settings).fingerprint
        staged, noted = name.staged(fingerprint), read_comment(connection, name)
        if noted and noted.get("fingerprint") == fingerprint and not exists(connection, staged.add(PARTS)):
            staged = name
        return StagedTable(staged, self._vector_type(source), self._settings.key)

    def _is_graph(self, source: IndexSource) -> bool:
        return is_graph(self._settings.kind, source.num_vectors)

    def _vector_type(self, source: IndexSource) -> VectorType:
        return choose_type(source, is_graph=self._is_graph(source))

    def _value_bytes(self, source: IndexSource) -> float:
        """Size of a stored vector, of a sparse one by the mean number of weights of a sample."""
        if source.kind != SPARSE:
            return self._vector_type(source).value_bytes()
        sample = source.at(source.sample_positions(100, seed=0))
        assert isinstance(sample, SparseVectors)
        return self._vector_type(source).value_bytes(len(sample.ids.values) / max(len(sample), 1))
