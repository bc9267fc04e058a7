"""The table of an index while it is built: created, and filled part by part, each part exactly once.

Invariants: a part is one transaction, which first writes its row of the ledger and then its vectors, so both exist or
neither; the second of two loaders of a part waits for the first and then finds the row of the ledger.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from varve.errors import JobError, RunError, first_line
from varve.indexing.pgvector.client import keyword, psycopg, sql
from varve.indexing.pgvector.column_types import find_type
from varve.indexing.pgvector.connection import lock_name, transaction
from varve.indexing.pgvector.copy_records import copy_records
from varve.indexing.pgvector.table_name import PARTS, TableName, exists, read_comment, write_comment
from varve.indexing.pgvector.vector_type import HALFVEC, SPARSEVEC, VectorType
from varve.indexing.record import IndexRequest
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD, IndexRows

EMBEDDING = "embedding"
# PostgreSQL moves long values out of a row. A vector stays in it (storage plain) unless the row then exceeds a page.
_MAX_ROW_BYTES, _ROW_BYTES = 8160, 24 + 8 + 16 + 4
_POINTER_BYTES = 24  # of a value that was moved
_MAX_HALF = 65504


@dataclass(frozen=True, slots=True)
class StagedTable:
    """The table of a build.

    Attributes:
        name: of the table; the ledger has the suffix `_parts`.
        vector_type: of the column embedding.
        key: kept column that identifies a row; None: shard and row.
    """

    name: TableName
    vector_type: VectorType
    key: str | None

    @property
    def ledger(self) -> TableName:
        """The table with one row per part that was added."""
        return self.name.add(PARTS)

    def key_columns(self, schema: pa.Schema) -> list[str]:
        """The columns of the primary key."""
        return [*([self.key] if self.key else [SHARD, ROW]), *([ITEM] if ITEM in schema.names else [])]


def begin(connection: psycopg.Connection, published: TableName, request: IndexRequest) -> None:
    """Create the ledger, or find that of an interrupted build; the extension is created if it is missing.

    Raises:
        JobError: the name is used by another build or table.
    """
    name = published.staged(request.fingerprint)
    ledger = name.add(PARTS)
    with transaction(connection):
        lock_name(connection, str(name))
        _create_extension(connection)
        if exists(connection, ledger):
            _require_same(read_comment(connection, ledger), ledger, request)
        else:
            statement = "CREATE TABLE {} (part integer PRIMARY KEY, rows bigint NOT NULL)"
            connection.execute(sql.SQL(statement).format(ledger.quoted))
        (now,) = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or (0.0,)
        noted = {"state": "building", "table": published.table, "fingerprint": request.fingerprint, "begun_at": now}
        write_comment(connection, ledger, noted)


def _create_extension(connection: psycopg.Connection) -> None:
    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone() is None:
        lock_name(connection, "extension")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


def _require_same(noted: dict[str, Any] | None, ledger: TableName, request: IndexRequest) -> None:
    if noted is None or noted.get("fingerprint") != request.fingerprint:
        msg = f"{ledger} exists and is not of this build. Choose another table=NAME, or drop it"
        raise JobError(msg)


def create(connection: psycopg.Connection, staged: StagedTable, schema: pa.Schema) -> None:
    """Create the table, unless it exists.

    Args:
        connection: to the database.
        staged: the table.
        schema: of `IndexRows.ids`.
    """
    noted = read_comment(connection, staged.ledger)
    with transaction(connection):
        lock_name(connection, str(staged.name))
        if exists(connection, staged.name) or noted is None:
            return
        columns = [_declare(field, staged) for field in schema]
        vector = keyword(f"{staged.vector_type.declaration} NOT NULL")
        columns.append(sql.SQL("{} {}").format(sql.Identifier(EMBEDDING), vector))
        statement = sql.SQL("CREATE TABLE {} ({})").format(staged.name.quoted, sql.SQL(", ").join(columns))
        connection.execute(statement)
        if _is_inline(staged.vector_type, schema):
            # Otherwise every text would be moved out of a row that the vector alone makes longer than 2 kB.
            statement = "ALTER TABLE {} ALTER COLUMN {} SET STORAGE plain, SET (toast_tuple_target = {})"
            values = (staged.name.quoted, sql.Identifier(EMBEDDING), sql.Literal(_MAX_ROW_BYTES))
            connection.execute(sql.SQL(statement).format(*values))
        write_comment(connection, staged.name, noted)


def _declare(field: pa.Field, staged: StagedTable) -> sql.Composed:
    required = field.name in {POSITION, SHARD, ROW, ITEM, staged.key}
    kind = keyword(find_type(field).postgres + (" NOT NULL" if required else ""))
    return sql.SQL("{} {}").format(sql.Identifier(field.name), kind)


def _is_inline(vector_type: VectorType, schema: pa.Schema) -> bool:
    """Whether a row fits into a page with its vector, whatever the kept columns hold."""
    kept_bytes = _POINTER_BYTES * len(schema) + len(schema) // 8
    fits = _ROW_BYTES + kept_bytes + vector_type.value_bytes() <= _MAX_ROW_BYTES
    return vector_type.name != SPARSEVEC and fits


def added_parts(connection: psycopg.Connection, staged: StagedTable) -> set[int]:
    """Numbers of the parts in the ledger."""
    return {part for (part,) in connection.execute(sql.SQL("SELECT part FROM {}").format(staged.ledger.quoted))}


def add_part(connection: psycopg.Connection, staged: StagedTable, rows: IndexRows) -> None:
    """Add a part in one transaction, unless it is in the ledger.

    Raises:
        JobError: the key has a null.
        RunError: PostgreSQL cannot store a value; the message names its row.
    """
    try:
        with transaction(connection):
            if _claim(connection, staged, rows) and len(rows):
                _copy(connection, staged, rows)
    except (psycopg.DataError, psycopg.errors.NotNullViolation, pa.ArrowInvalid) as e:
        raise _describe(e, staged, rows) from e


def _claim(connection: psycopg.Connection, staged: StagedTable, rows: IndexRows) -> bool:
    """Write the part's row of the ledger; False if it is there. Waits for a transaction that has written it."""
    statement = "INSERT INTO {} (part, rows) VALUES (%s, %s) ON CONFLICT DO NOTHING"
    return bool(connection.execute(sql.SQL(statement).format(staged.ledger.quoted), [rows.part, len(rows)]).rowcount)


def _copy(connection: psycopg.Connection, staged: StagedTable, rows: IndexRows) -> None:
    names = sql.SQL(", ").join(sql.Identifier(name) for name in [*rows.ids.column_names, EMBEDDING])
    statement = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT binary)").format(staged.name.quoted, names)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy_records(rows, staged.vector_type):
            copy.write(block)


def _describe(error: Exception, staged: StagedTable, rows: IndexRows) -> JobError | RunError:
    """The refused value, which the server does not locate."""
    for field, column in zip(rows.ids.schema, rows.ids.columns, strict=True):
        if field.name == staged.key and column.null_count:
            where = _place(rows, pc.index(column.is_null(), pa.scalar(value=True)).as_py())
            return JobError(f"--key {field.name}: it is null in {where}. Choose a column without nulls")
        if (row := _find_nul(column)) is not None:
            msg = f"the kept column {field.name!r} has a NUL character in {_place(rows, row)}, which PostgreSQL does "
            return RunError(msg + "not store. Leave the column out of --keep, or remove the character in the source")
    if (row := _find_unstorable(rows, staged.vector_type)) is not None:
        kind = f"{staged.vector_type.name}, expected finite numbers"
        limit = f" of at most {_MAX_HALF}" if staged.vector_type.name == HALFVEC else ""
        return RunError(f"the vector of {_place(rows, row)} cannot be stored as {kind}{limit}")
    return RunError(f"{staged.name}: a value of part {rows.part} is refused: {first_line(error)}")


def _find_nul(column: pa.ChunkedArray) -> int | None:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    row = pc.index(
        pc.call_function("match_substring", [column], pc.MatchSubstringOptions("\0")), pa.scalar(value=True)
    ).as_py()
    return None if row < 0 else row


def _find_unstorable(rows: IndexRows, vector_type: VectorType) -> int | None:
    if not isinstance(rows.vectors, np.ndarray):
        return None
    limit = _MAX_HALF if vector_type.name == HALFVEC else np.inf
    refused = np.flatnonzero(~np.isfinite(rows.vectors).all(axis=1) | (np.abs(rows.vectors) > limit).any(axis=1))
    return int(refused[0]) if len(refused) else None


def _place(rows: IndexRows, index: int) -> str:
    return f"shard {rows.ids[SHARD][index]}, row {rows.ids[ROW][index]}"
