"""Compares a published table with its record.

Knows nothing of the source. Invariant: reads only.
"""

import json
from dataclasses import asdict

from varve.indexing.pgvector.client import psycopg, sql
from varve.indexing.pgvector.hnsw_index import Graph, find_index
from varve.indexing.pgvector.table_name import GRAPH, KEY, PARTS, POSITION_INDEX, TableName, exists, read_comment
from varve.indexing.record import IndexRecord
from varve.indexing.rows import POSITION

_POSITIONS = "SELECT count(*), count(DISTINCT {0}), coalesce(min({0}), 0), coalesce(max({0}), -1) FROM {1}"
_PARTS = "SELECT coalesce(sum(rows), 0) FROM {}"


def check_table(connection: psycopg.Connection, name: TableName, record: IndexRecord) -> list[str]:
    """One line per failure: the record, the number of rows, their positions, the ledger, the indexes."""
    noted = read_comment(connection, name)
    if noted is None:
        return [f"{name} is missing, or Varve did not make it"]
    failures = []
    if noted.get("record") != json.loads(json.dumps(asdict(record))):
        failures.append(f"{name}: its record differs: another index was published meanwhile")
    failures += _check_rows(connection, name, record.request.num_vectors)
    graph = Graph.parse(record.kind)
    for suffix, options in (
        (KEY, ""),
        (POSITION_INDEX, ""),
        *([(GRAPH, graph.options.replace(" ", ""))] if graph else []),
    ):
        found = find_index(connection, name.add(suffix))
        if found is None or not found["valid"] or found["options"] != options:
            failures.append(f"{name.add(suffix)}: the index is missing, not valid, or of another kind")
    return failures


def _check_rows(connection: psycopg.Connection, name: TableName, expected: int) -> list[str]:
    statement = sql.SQL(_POSITIONS).format(sql.Identifier(POSITION), name.quoted)
    found = connection.execute(statement).fetchone()
    failures = []
    if found != (expected, expected, 0, expected - 1):
        rows, distinct, first, last = found or (0, 0, 0, -1)
        failures.append(
            f"{name} has {rows:,} rows with {distinct:,} positions from {first} to {last}, expected {expected:,} rows "
            f"with the positions 0 to {expected - 1}"
        )
    ledger = name.add(PARTS)
    statement = sql.SQL(_PARTS).format(ledger.quoted)
    counted = connection.execute(statement).fetchone() if exists(connection, ledger) else None
    if counted is None or counted[0] != expected:
        failures.append(f"{ledger}: its parts have {counted[0] if counted else 0} rows, expected {expected:,}")
    return failures
