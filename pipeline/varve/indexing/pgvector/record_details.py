"""What the record of a table holds for its readers, and what is derived from it again.

Knows nothing of connections. Invariant: a record alone, without the source, is enough to search the table.
"""

import base64
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from varve.indexing.metric import Metric
from varve.indexing.pgvector.client import keyword, sql
from varve.indexing.pgvector.hnsw_index import Graph
from varve.indexing.pgvector.staged_table import EMBEDDING, StagedTable
from varve.indexing.pgvector.table_name import TableName
from varve.indexing.pgvector.vector_type import VectorType
from varve.indexing.record import IndexRecord
from varve.indexing.rows import ITEM, POSITION, ROW, SHARD
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind


def ids_schema(source: IndexSource) -> pa.Schema:
    """The schema of `IndexRows.ids`."""
    stored = source.output.schema
    fields = [(POSITION, pa.int64()), *((name, stored.field(name).type) for name in (SHARD, ROW))]
    fields += [(ITEM, pa.int32())] if source.has_items else []
    return pa.schema([*fields, *((name, stored.field(name).type) for name in source.columns)])


def make_details(name: TableName, staged: StagedTable, schema: pa.Schema, kind: Kind) -> dict[str, Any]:
    """What the readers of the table need."""
    statement = sql.SQL("SELECT {} FROM {} ORDER BY {} {} %s LIMIT 10").format(
        sql.SQL(", ").join(map(sql.Identifier, staged.key_columns(schema))),
        name.quoted,
        sql.Identifier(EMBEDDING),
        keyword(staged.vector_type.operator),
    )
    return {
        "table": str(name),
        "type": staged.vector_type.name,
        "width": staged.vector_type.width,
        "exact": staged.vector_type.exact,
        "operator": staged.vector_type.operator,
        "operator_class": staged.vector_type.operator_class if Graph.parse(kind.name) else None,
        "key": staged.key_columns(schema),
        "query": statement.as_string(),
        "metric": asdict(staged.vector_type.metric),
        "schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
    }


def parse_details(record: IndexRecord) -> tuple[VectorType, pa.Schema]:
    """The type of the vectors, and the schema of `IndexRows.ids`."""
    details = record.details
    metric = Metric(**record.request.metric)
    vector_type = VectorType(details["type"], details["width"], metric, exact=details["exact"])
    return vector_type, pa.ipc.read_schema(pa.py_buffer(base64.b64decode(details["schema"])))
