"""Names of an index's relations, and the comment by which Varve recognizes its own tables.

A build has a table NAME__XXXXXXXX and a ledger of its parts, NAME__XXXXXXXX_parts, where XXXXXXXX begins the request's
fingerprint. When it is published they become NAME and NAME_parts. Invariant: a table without Varve's comment is never
changed.
"""

import json
from dataclasses import dataclass
from typing import Any

from varve.errors import JobError
from varve.indexing.pgvector.address import Address
from varve.indexing.pgvector.client import psycopg, sql

PARTS, KEY, POSITION_INDEX, GRAPH = "_parts", "_pkey", "_position", "_hnsw"
SUFFIXES = ("", PARTS, KEY, POSITION_INDEX, GRAPH)
MARK = "varve"

_COMMENT = """
SELECT obj_description(c.oid, 'pg_class') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""


@dataclass(frozen=True, slots=True)
class TableName:
    """A table of the database, and the relations that belong to it."""

    schema: str
    table: str

    @property
    def quoted(self) -> sql.Identifier:
        """The name in a statement."""
        return sql.Identifier(self.schema, self.table)

    def add(self, suffix: str) -> "TableName":
        """The name of another relation."""
        return TableName(self.schema, self.table + suffix)

    def staged(self, fingerprint: str) -> "TableName":
        """The name while the index is built."""
        return self.add(f"__{fingerprint[:8]}")

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


def resolve(connection: psycopg.Connection, address: Address) -> TableName:
    """The published table of an address.

    Raises:
        JobError: the address has no schema, and the search path has none.
    """
    schema = address.schema
    if schema is None:
        (schema,) = connection.execute("SELECT current_schema()").fetchone() or (None,)
    if schema is None:
        msg = f"{address}: the user's search path has no schema: write table=SCHEMA.NAME"
        raise JobError(msg)
    return TableName(schema, address.table)


def exists(connection: psycopg.Connection, name: TableName) -> bool:
    """Whether there is a relation of this name: a table, a view, an index, a sequence."""
    statement = "SELECT to_regclass(%s) IS NOT NULL"
    return _one(connection, statement, [name.quoted.as_string(connection)])


def read_comment(connection: psycopg.Connection, name: TableName) -> dict[str, Any] | None:
    """What Varve has noted of a table; None if there is no such table, or Varve did not make it."""
    found = connection.execute(_COMMENT, [name.schema, name.table]).fetchone()
    try:
        content = json.loads(found[0]) if found and found[0] else None
    except ValueError:
        return None
    noted = content.get(MARK) if isinstance(content, dict) else None
    return noted if isinstance(noted, dict) else None


def write_comment(connection: psycopg.Connection, name: TableName, noted: dict[str, Any]) -> None:
    """Mark a table as made by Varve."""
    content = sql.Literal(json.dumps({MARK: noted}))
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name.quoted, content))


def _one(connection: psycopg.Connection, statement: str, parameters: list) -> Any:
    row = connection.execute(statement, parameters).fetchone()  # pyright: ignore[reportArgumentType]
    return row[0] if row else None
