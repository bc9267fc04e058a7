"""Message between stages: a whole part in one row of a table.

The row holds the range, counts, and the table as Arrow IPC bytes, so an engine that bundles, splits or retries rows can
neither cut a part nor mix two parts. Unpacking copies no data.
"""

import json
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from varve.ranges import Range


@dataclass(frozen=True, slots=True)
class PartMessage:
    """The rows of a part, on their way between stages."""

    rows: Range
    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)  # events, for the record of the part


def pack_message(message: PartMessage) -> pa.Table:
    """Pack a message into a table of one row."""
    return pa.table(
        {
            "shard": pa.array([message.rows.shard], pa.int32()),
            "start": pa.array([message.rows.start], pa.int64()),
            "stop": pa.array([message.rows.stop], pa.int64()),
            "counts": pa.array([json.dumps(message.counts)]),
            "table": _cell(_stream(message.table)),
        }
    )


def unpack_message(batch: pa.Table) -> PartMessage:
    """Unpack a message from a table of one row."""
    shard, start, stop, counts = (batch[name][0].as_py() for name in ("shard", "start", "stop", "counts"))
    return PartMessage(
        Range(shard, start, stop),
        pa.ipc.open_stream(batch["table"][0].as_buffer()).read_all(),
        json.loads(counts),
    )


def text_bytes(texts: pa.Table) -> int:
    """Bytes of the texts of some rows as Parquet stores them: UTF-8, and the length of each in 4 bytes."""
    columns = [column for column in texts.columns if pa.types.is_string(column.type)]
    lengths = sum(pc.sum(pc.binary_length(column)).as_py() or 0 for column in columns)  # pyright: ignore[reportAttributeAccessIssue]
    return lengths + 4 * len(texts) * len(columns)


def _stream(table: pa.Table) -> pa.Buffer:
    """The table's IPC stream, copied once: a stream that grows would copy it several times."""
    size = pa.MockOutputStream()
    _write(table, size)
    content = pa.allocate_buffer(size.size())
    _write(table, pa.FixedSizeBufferWriter(content))
    return content


def _write(table: pa.Table, stream: pa.NativeFile) -> None:
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)


def _cell(content: pa.Buffer) -> pa.Array:
    """A large_binary array with one value, without a copy."""
    offsets = pa.py_buffer(pa.array([0, content.size], pa.int64()).buffers()[1])
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])
