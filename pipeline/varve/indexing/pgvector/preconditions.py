"""What a database must have before a build writes to it: version, extension, rights, free names, types.

Invariant: nothing is written; each refusal names what is missing and who can change it.
"""

from typing import Any

import pyarrow as pa

from varve.errors import JobError
from varve.indexing.pgvector.address import Address
from varve.indexing.pgvector.client import dict_row, psycopg
from varve.indexing.pgvector.column_types import find_type
from varve.indexing.pgvector.staged_table import EMBEDDING
from varve.indexing.pgvector.table_name import SUFFIXES, TableName, read_comment
from varve.indexing.pgvector.vector_type import (
    BIT,
    MAX_GRAPH_NONZERO,
    MAX_GRAPH_WIDTH,
    MAX_WIDTH,
    SPARSEVEC,
    VECTOR,
    VectorType,
)
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD
from varve.indexing.source import IndexSource
from varve.output.vectors import list_offsets

_LEAST_SERVER, _LEAST_EXTENSION, _LEAST_TYPES = 130_000, (0, 5), (0, 7)
_SYSTEM_COLUMNS = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
_MAX_COLUMN_BYTES = 63

_FACTS = """
SELECT current_setting('server_version_num')::int AS server, current_user AS role, current_database() AS database,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS installed,
    (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS available,
    (SELECT bool_or(trusted) FROM pg_available_extension_versions WHERE name = 'vector') AS trusted,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
    has_database_privilege(current_database(), 'CREATE') AS may_create,
    current_setting('transaction_read_only') = 'on' AS read_only
"""
_SCHEMA = """
SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s
"""
# The table that a relation belongs to: itself, or that of an index.
_TABLE_OF = """
SELECT t.relname, pg_has_role(t.relowner, 'USAGE') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_class t ON t.oid = coalesce(i.indrelid, c.oid)
WHERE n.nspname = %s AND c.relname = %s
"""


def check_source(source: IndexSource, vector_type: VectorType, *, is_graph: bool) -> None:
    """Refuse columns and vectors that a table or an HNSW index cannot hold.

    Raises:
        JobError: the message names the column, its value and the limit.
    """
    for name in source.columns:
        _check_column(source.output.schema.field(name))
    limits = MAX_GRAPH_WIDTH if is_graph else MAX_WIDTH
    if vector_type.width > limits[vector_type.name]:
        msg = (
            f"{source.column.name} has {vector_type.width:,} dimensions; {'HNSW' if is_graph else 'a table'} holds at "
            f"most {limits[vector_type.name]:,} of {vector_type.name}. Use an output of dtype binary, or another target"
        )
        raise JobError(msg)
    if is_graph and vector_type.name == SPARSEVEC:
        _check_nonzero(source)


def _check_column(field: pa.Field) -> None:
    taken = {POSITION, SHARD, ROW, ITEM, EMBEDDING} | _SYSTEM_COLUMNS
    if field.name in taken:
        msg = f"the kept column {field.name!r} has the name of a column of the target postgresql: rename it in the run"
        raise JobError(msg)
    if len(field.name.encode()) > _MAX_COLUMN_BYTES or "\0" in field.name:
        msg = f"the name of the kept column {field.name!r} is too long: PostgreSQL allows {_MAX_COLUMN_BYTES} bytes"
        raise JobError(msg)
    find_type(field)


def _check_nonzero(source: IndexSource) -> None:
    """Count the weights of every vector: HNSW refuses more than 1,000, which would end the build after the load."""
    name = source.column.stored_names[0]
    for part in source.output.manifest.parts:
        offsets = list_offsets(source.output.read(part, [name]).column(0))
        most = int((offsets[1:] - offsets[:-1]).max(initial=0))
        if most > MAX_GRAPH_NONZERO:
            msg = (
                f"{source.column.name}: a vector of {part.name} has {most:,} weights; HNSW holds at most "
                f"{MAX_GRAPH_NONZERO:,}. Use --kind flat, or an output with fewer weights (top_k of the feature)"
            )
            raise JobError(msg)


def check_database(
    connection: psycopg.Connection, address: Address, name: TableName, vector_type: VectorType, *, is_graph: bool
) -> None:
    """Refuse a server that is too old, a missing extension or right, and names that others use.

    Raises:
        JobError: the message names what is missing.
    """
    facts = _read_facts(connection)
    if facts["server"] < _LEAST_SERVER:
        msg = f"{address}: the server has version {facts['server'] // 10_000}, expected PostgreSQL 13 or later"
        raise JobError(msg)
    if facts["read_only"]:
        msg = f"{address}: the server is read-only. Use the address of the primary server"
        raise JobError(msg)
    _check_extension(address, facts, vector_type, is_graph=is_graph)
    _check_schema(connection, address, name, facts["role"])
    for suffix in SUFFIXES:
        _check_name(connection, address, name, name.add(suffix))


def _read_facts(connection: psycopg.Connection) -> dict[str, Any]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_FACTS).fetchone() or {}


def _check_extension(address: Address, facts: dict[str, Any], vector_type: VectorType, *, is_graph: bool) -> None:
    version = facts["installed"] or facts["available"]
    if version is None:
        msg = (
            f"{address}: the server has no pgvector. Install it on the server (package postgresql-"
            f"{facts['server'] // 10_000}-pgvector, or the image pgvector/pgvector), then run CREATE EXTENSION vector"
        )
        raise JobError(msg)
    found = tuple(int(number) for number in version.split(".")[:2])
    least = _LEAST_EXTENSION if vector_type.name == VECTOR else _LEAST_TYPES
    if found < least:
        what = vector_type.name if vector_type.name != BIT else "an index of bits"
        update = "ALTER EXTENSION vector UPDATE" if facts["installed"] else "an update"
        msg = f"{address}: pgvector has version {version}; {what} needs {least[0]}.{least[1]}: run {update}"
        raise JobError(msg if is_graph or vector_type.name != VECTOR else msg.replace("vector needs", "Varve needs"))
    allowed = facts["is_superuser"] or (facts["trusted"] and facts["may_create"])
    if facts["installed"] is None and not allowed:
        right = f"the right CREATE on {facts['database']}" if facts["trusted"] else "the rights of a superuser"
        msg = (
            f"{address}: the extension vector is not created in the database {facts['database']}, and the user "
            f"{facts['role']} may not create it. CREATE EXTENSION vector needs {right}: run it as such a user"
        )
        raise JobError(msg)


def _check_schema(connection: psycopg.Connection, address: Address, name: TableName, role: str) -> None:
    found = connection.execute(_SCHEMA, [name.schema]).fetchone()
    if found is None:
        msg = f"{address}: there is no schema {name.schema!r}: run CREATE SCHEMA, or correct table="
        raise JobError(msg)
    if not found[0]:
        msg = (
            f"{address}: the user {role} may not create tables in the schema {name.schema!r}: run GRANT CREATE, USAGE "
            f"ON SCHEMA {name.schema} TO {role}, or write table=SCHEMA.NAME"
        )
        raise JobError(msg)


def _check_name(connection: psycopg.Connection, address: Address, name: TableName, relation: TableName) -> None:
    """Refuse a relation that is not part of an index of Varve: publishing would replace it."""
    found = connection.execute(_TABLE_OF, [relation.schema, relation.table]).fetchone()
    if found is None:
        return
    table, is_owner = found
    noted = read_comment(connection, TableName(name.schema, table))
    if noted is None or noted.get("table") != name.table:
        msg = f"{address}: {relation} exists, and Varve did not make it. Choose another table=NAME, or rename it"
        raise JobError(msg)
    if not is_owner:
        msg = f"{address}: {relation} belongs to another role, which alone may replace it: use that user"
        raise JobError(msg)
