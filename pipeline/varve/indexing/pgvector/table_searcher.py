"""Answers queries from the table of an index, staged or published.

Invariants: a query of a graph is answered by the graph, which the server's plan must show, so that the measured recall
is that of the graph; a setting holds for the transaction of its queries and never for the session.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError
from varve.indexing.neighbours import Neighbours
from varve.indexing.pgvector.client import keyword, psycopg, register_vector, sql
from varve.indexing.pgvector.column_types import from_values
from varve.indexing.pgvector.copy_records import read_vectors
from varve.indexing.pgvector.staged_table import EMBEDDING
from varve.indexing.pgvector.table_name import GRAPH, TableName
from varve.indexing.pgvector.vector_type import SPARSEVEC, VectorType
from varve.indexing.rows import POSITION, Vectors, take
from varve.indexing.scores import prepare_queries

_MAX_EF = 1000
_ITERATIVE = (0, 8)  # the first version of pgvector that returns more vectors than ef_search


@dataclass(frozen=True)
class TableSearcher:
    """A table with vectors, and the connection that reads it.

    Attributes:
        connection: with pgvector's types registered.
        table: its name.
        vector_type: of its vectors.
        schema: of `IndexRows.ids`.
        is_graph: whether it has an HNSW index.
        extension: version of pgvector.
    """

    connection: psycopg.Connection
    table: TableName
    vector_type: VectorType
    schema: pa.Schema
    is_graph: bool
    extension: tuple[int, ...]
    _planned: set[tuple[int, int]] = field(default_factory=set)

    def search(self, queries: Vectors, k: int, setting: Mapping[str, int]) -> Neighbours:
        """The k nearest vectors of each query (`Searcher.search`).

        Raises:
            RunError: the server does not answer from the graph.
        """
        prepared = prepare_queries(queries, self.vector_type.metric)
        found = Neighbours.none(len(queries), k)
        statement = self._statement(k)
        with self.connection.transaction():
            self._set(k, setting)
            for query in range(len(queries)):
                one = take(prepared, slice(query, query + 1))
                value = self.vector_type.parameter(one)
                self._require_graph(statement, value, k, setting)
                self._fill(found, query, self.connection.execute(statement, {"query": value}, binary=True).fetchall())
        return found.best(k)

    def _statement(self, k: int) -> sql.Composed:
        distance = sql.SQL("{} {} %(query)b").format(sql.Identifier(EMBEDDING), keyword(self.vector_type.operator))
        statement = sql.SQL("SELECT {}, {} FROM {} ORDER BY {} LIMIT {}")
        return statement.format(sql.Identifier(POSITION), distance, self.table.quoted, distance, sql.Literal(k))

    def _set(self, k: int, setting: Mapping[str, int]) -> None:
        """`hnsw.ef_search` of the transaction; more vectors than that are found by resuming the search."""
        if not self.is_graph:
            return
        ef_search = int(setting.get("ef_search", 40))
        if k > ef_search and self.extension >= _ITERATIVE:
            self.connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        elif k > ef_search:
            ef_search = min(k, _MAX_EF)
        self.connection.execute(
            "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_seqscan', 'off', true)", [str(ef_search)]
        )

    def _require_graph(self, statement: sql.Composed, value: Any, k: int, setting: Mapping[str, int]) -> None:
        """Compare the server's plan with the index, once per setting.

        Raises:
            RunError: the plan does not use it.
        """
        case = (k, setting.get("ef_search", 0))
        if not self.is_graph or case in self._planned:
            return
        explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(statement)
        (plan,) = self.connection.execute(explain, {"query": value}).fetchone() or ([],)
        if f'"Index Name": "{self.table.add(GRAPH).table}"' not in json.dumps(plan, ensure_ascii=False):
            msg = f"{self.table}: the server does not use the index {self.table.add(GRAPH)}, so its recall is unknown"
            raise RunError(msg)
        self._planned.add(case)

    def _fill(self, found: Neighbours, query: int, rows: list[tuple[int, float]]) -> None:
        if rows:
            positions, distances = zip(*rows, strict=True)
            found.positions[query, : len(rows)] = positions
            found.scores[query, : len(rows)] = self.vector_type.scores(np.array(distances, np.float64))

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """The columns of `IndexRows.ids` of N positions, in their order.

        Raises:
            RunError: a position is missing.
        """
        names = sql.SQL(", ").join(map(sql.Identifier, self.schema.names))
        statement = sql.SQL("SELECT {} FROM {} WHERE {} = ANY(%s)")
        statement = statement.format(names, self.table.quoted, sql.Identifier(POSITION))
        asked = [int(position) for position in np.unique(positions)]
        found = self.connection.execute(statement, [asked], binary=True).fetchall()
        columns = list(zip(*found, strict=True)) if found else [()] * len(self.schema)
        arrays = [from_values(f, list(column)) for f, column in zip(self.schema, columns, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        return table.take(pa.array(self._places(table[POSITION].to_numpy(), positions)))

    def _places(self, stored: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of each position among the stored ones."""
        order = np.argsort(stored)
        places = np.searchsorted(stored[order], positions)
        missing = (places >= len(stored)) | (
            stored[order][np.minimum(places, len(stored) - 1)] != positions if len(stored) else True
        )
        if np.any(missing):
            msg = f"{self.table} has no row for position {int(positions[np.flatnonzero(missing)[0]])}"
            raise RunError(msg)
        return order[places] if len(positions) else np.zeros(0, np.int64)

    def dense_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """(N, width) float32 vectors of N positions; None if the table holds sparse or rounded ones.

        Raises:
            RunError: a position is missing.
        """
        if self.vector_type.name == SPARSEVEC or not self.vector_type.exact:
            return None
        statement = sql.SQL("COPY (SELECT {}, {} FROM {} WHERE {} = ANY({})) TO STDOUT WITH (FORMAT binary)").format(
            sql.Identifier(POSITION),
            sql.Identifier(EMBEDDING),
            self.table.quoted,
            sql.Identifier(POSITION),
            sql.Literal([int(position) for position in np.unique(positions)]),
        )
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            content = b"".join(copy)
        stored, vectors = read_vectors(content, self.vector_type.width, self.vector_type.name)
        return vectors[self._places(stored, positions)]


def make_searcher(
    connection: psycopg.Connection, table: TableName, vector_type: VectorType, schema: pa.Schema, *, is_graph: bool
) -> TableSearcher:
    """A searcher that reads through this connection; the other arguments are its attributes."""
    register_vector(connection)
    version = server_versions(connection)["pgvector extension"]
    extension = tuple(int(number) for number in version.split(".")[:2])
    return TableSearcher(connection, table, vector_type, schema, is_graph, extension)


def server_versions(connection: psycopg.Connection) -> dict[str, str]:
    """Of the server and of its extension."""
    statement = "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
    server, extension = connection.execute(statement).fetchone() or ("", "0.0")
    return {"postgresql": server, "pgvector extension": extension}
