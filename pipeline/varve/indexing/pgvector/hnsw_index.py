"""Kinds of indexes, and what makes a loaded table searchable: primary key, HNSW graph, statistics.

Knows nothing of loading and publishing. Invariants: each step is a transaction that does nothing if its result exists
and is valid, so `finish` may be killed and repeated, also by two processes at once; a table has one graph.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from varve.errors import JobError, RunError, one_line
from varve.indexing.pgvector.client import keyword, psycopg, sql
from varve.indexing.pgvector.connection import lock_name, transaction
from varve.indexing.pgvector.staged_table import EMBEDDING, StagedTable
from varve.indexing.pgvector.table_name import GRAPH, KEY, POSITION_INDEX, TableName, exists
from varve.indexing.rows import POSITION
from varve.indexing.target import Kind

FLAT, HNSW = "flat", "hnsw"
AUTO = ("hnsw", "hnsw,m=32,ef=128")
EF_SEARCH = (20, 40, 80, 160, 320, 640, 1000)
_FLAT_ROWS = 20_000  # fewer vectors are compared one by one in milliseconds
_NAME = re.compile(r"hnsw(?:,m=(\d{1,3}))?(?:,ef=(\d{1,4}))?")
_PAGE_BYTES, _FREE_BYTES = 8192, 8192 - 24 - 8  # without the header of a page and pgvector's part of it
_MAX_BUILD_BYTES = 2**40
_NO_MEMORY = "hnsw graph no longer fits into maintenance_work_mem"
_EXPECTED = "flat, hnsw, or hnsw,m=M,ef=E with M from 2 to 100 and E from 2·M to 1000, such as hnsw,m=32,ef=128"

logger = logging.getLogger("varve")


@dataclass(frozen=True, slots=True)
class Graph:
    """Parameters of an HNSW index: links of a vector, and candidates while it is built."""

    m: int = 16
    ef_construction: int = 64

    @classmethod
    def parse(cls, name: str) -> "Graph | None":
        """The parameters of a kind; None for flat.

        Raises:
            JobError: there is no such kind.
        """
        if name == FLAT:
            return None
        match = _NAME.fullmatch(name)
        m, ef = (int(match[1] or 16), int(match[2] or max(64, 2 * int(match[1] or 16)))) if match else (0, 0)
        if not (2 <= m <= 100 and 2 * m <= ef <= 1000):
            msg = f"--kind: {name!r} is not a kind of the target postgresql: expected {_EXPECTED}"
            raise JobError(msg)
        return cls(m, ef)

    def bytes_per_vector(self, value_bytes: float) -> float:
        """Of the finished index, which stores whole vectors and links in pages of 8 kB."""
        element = _aligned(72 + value_bytes)
        links = _aligned(4 + 6 * self.m * (2 + self._upper_layers))
        return _PAGE_BYTES / max(1, int(_FREE_BYTES / (element + links + 8)))

    def build_bytes(self, value_bytes: float, rows: int) -> int:
        """Memory of the graph while it is built; `maintenance_work_mem` must be above it."""
        per_row = _aligned(value_bytes) + 192 + 16 * self.m * (2 + self._upper_layers)
        return int(1.2 * per_row * rows) + 2**20

    @property
    def _upper_layers(self) -> float:
        """Mean number of layers of a vector above the lowest."""
        return 1 / (self.m - 1)

    @property
    def options(self) -> str:
        """In a statement, and with spaces removed as the server lists them."""
        return f"m={self.m}, ef_construction={self.ef_construction}"


def _aligned(size: float) -> float:
    return -(-size // 8) * 8


def is_graph(kind: str, num_vectors: int) -> bool:
    """Whether the wanted kind (flat, hnsw..., auto) is a graph."""
    return num_vectors >= _FLAT_ROWS if kind == "auto" else Graph.parse(kind) is not None


def list_kinds(kind: str, num_vectors: int, value_bytes: float) -> list[Kind]:
    """The kinds to build for the wanted one.

    Raises:
        JobError: there is no such kind.
    """
    if not is_graph(kind, num_vectors):
        return [Kind(FLAT, value_bytes)]
    settings = tuple({"ef_search": value} for value in EF_SEARCH)
    names = AUTO if kind == "auto" else (kind,)
    graphs = {name: Graph.parse(name) or Graph() for name in names}
    return [Kind(name, graph.bytes_per_vector(value_bytes), settings) for name, graph in graphs.items()]


def finish(
    connection: psycopg.Connection,
    staged: StagedTable,
    schema: pa.Schema,
    graph: Graph | None,
    num_vectors: int,
    value_bytes: float,
) -> None:
    """Add the primary key, the index of positions and the graph, unless they exist.

    Args:
        connection: to the database.
        staged: the table.
        schema: of `IndexRows.ids`.
        graph: its parameters; None for a flat table.
        num_vectors: of the source.
        value_bytes: size of a stored vector.

    Raises:
        JobError: the key is not unique.
        RunError: vectors are missing.
    """
    _require_rows(connection, staged, num_vectors, sql.SQL("SELECT coalesce(sum(rows), 0) FROM {}"), staged.ledger)
    if not exists(connection, staged.name.add(KEY)):
        # Rows that killed loaders left are removed before they would be indexed.
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(staged.name.quoted))
    _add_keys(connection, staged, schema)
    _require_rows(connection, staged, num_vectors, sql.SQL("SELECT count(*) FROM {}"), staged.name)
    with transaction(connection):
        lock_name(connection, str(staged.name))
        _build_graph(connection, staged, graph, graph.build_bytes(value_bytes, num_vectors) if graph else 0)
    connection.execute(sql.SQL("ANALYZE {}").format(staged.name.quoted))


def _require_rows(
    connection: psycopg.Connection, staged: StagedTable, expected: int, statement: sql.SQL, table: TableName
) -> None:
    """Compare the rows of the table, or of its ledger, with the source."""
    (found,) = connection.execute(statement.format(table.quoted)).fetchone() or (0,)
    if found != expected:
        msg = f"{staged.name} has {found:,} vectors, expected {expected:,}. "
        repair = "Run the same command again: it resumes" if table == staged.ledger else "Drop it, and build it again"
        raise RunError(msg + repair)


def _add_keys(connection: psycopg.Connection, staged: StagedTable, schema: pa.Schema) -> None:
    columns = staged.key_columns(schema)
    try:
        with transaction(connection):
            lock_name(connection, str(staged.name))
            _give_memory(connection, 64 * 2**20)
            if not exists(connection, staged.name.add(KEY)):
                statement = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})").format(
                    staged.name.quoted,
                    sql.Identifier(staged.name.add(KEY).table),
                    sql.SQL(", ").join(map(sql.Identifier, columns)),
                )
                connection.execute(statement)
            if not exists(connection, staged.name.add(POSITION_INDEX)):
                statement = sql.SQL("CREATE UNIQUE INDEX {} ON {} ({})").format(
                    sql.Identifier(staged.name.add(POSITION_INDEX).table),
                    staged.name.quoted,
                    sql.Identifier(POSITION),
                )
                connection.execute(statement)
    except psycopg.errors.UniqueViolation as e:
        raise _duplicates(connection, staged, columns) from e
    except psycopg.errors.ProgramLimitExceeded as e:
        msg = f"--key {staged.key}: a value is too long for an index of PostgreSQL: {one_line(e)}"
        raise JobError(msg) from e


def _duplicates(connection: psycopg.Connection, staged: StagedTable, columns: list[str]) -> JobError | RunError:
    """The refusal of a key with two examples."""
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    statement = sql.SQL("SELECT {0}, count(*) FROM {1} GROUP BY {0} HAVING count(*) > 1 ORDER BY {0} LIMIT 2")
    found = connection.execute(statement.format(listed, staged.name.quoted)).fetchall()
    examples = " and ".join(f"{', '.join(repr(value) for value in values)} ({count} rows)" for *values, count in found)
    if staged.key is None:
        return RunError(f"{staged.name}: rows are not unique: {examples}. Drop this table, and build it again")
    msg = f"--key {staged.key}: the column is not unique: {examples}. Choose another column, or leave out --key"
    return JobError(msg)


def _build_graph(connection: psycopg.Connection, staged: StagedTable, graph: Graph | None, memory_bytes: int) -> None:
    """Create the graph that is wanted, and drop another one, or one that is not valid."""
    name = staged.name.add(GRAPH)
    found = find_index(connection, name)
    if graph and found and found["valid"] and found["options"] == graph.options.replace(" ", ""):
        return
    if found:
        connection.execute(sql.SQL("DROP INDEX {}").format(name.quoted))
    if graph:
        _give_memory(connection, memory_bytes)
        _create_graph(connection, staged, graph, memory_bytes)


def find_index(connection: psycopg.Connection, name: TableName) -> dict[str, Any] | None:
    """{"valid", "options"} of an index; None if there is none."""
    statement = """
        SELECT i.indisvalid AND i.indisready, coalesce(array_to_string(c.reloptions, ','), '')
        FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid WHERE c.oid = to_regclass(%s)
    """
    found = connection.execute(statement, [name.quoted.as_string(connection)]).fetchone()
    return {"valid": found[0], "options": found[1]} if found else None


def _give_memory(connection: psycopg.Connection, wanted_bytes: int) -> None:
    """Raise `maintenance_work_mem` of the transaction, to at most twice `shared_buffers`: half of a server's memory."""
    statement = """
        SELECT set_config('maintenance_work_mem', (greatest(
            pg_size_bytes(current_setting('maintenance_work_mem')),
            least(%s::bigint, 2 * pg_size_bytes(current_setting('shared_buffers')))) / 1024)::text || 'kB', true),
        set_config('max_parallel_maintenance_workers', current_setting('max_parallel_workers'), true)
    """
    connection.execute(statement, [min(wanted_bytes, _MAX_BUILD_BYTES)])


def _create_graph(connection: psycopg.Connection, staged: StagedTable, graph: Graph, memory_bytes: int) -> None:
    statement = sql.SQL("CREATE INDEX {} ON {} USING hnsw ({} {}) WITH ({})").format(
        sql.Identifier(staged.name.add(GRAPH).table),
        staged.name.quoted,
        sql.Identifier(EMBEDDING),
        keyword(staged.vector_type.operator_class),
        keyword(graph.options),
    )

    def warn(notice: psycopg.errors.Diagnostic) -> None:
        if _NO_MEMORY in (text := notice.message_primary or ""):
            option = f"options=-c%20maintenance_work_mem%3D{memory_bytes // 2**20 + 1}MB"
            advice = f"if the server has the memory, add &{option} to the address"
            logger.warning("%s: %s, and the build takes much longer: %s", staged.name, text, advice)

    connection.add_notice_handler(warn)
    try:
        with connection.transaction():
            connection.execute(statement)
    except psycopg.errors.DiskFull as e:
        if "shared memory" not in str(e):
            raise
        logger.warning("%s: built by one process: %s. Give the server more of /dev/shm", staged.name, one_line(e))
        connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        connection.execute(statement)
    finally:
        connection.remove_notice_handler(warn)
