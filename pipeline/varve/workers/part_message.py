"""Message between stages: a whole part in one row of a table.

The row holds the range, counts, and tables as Arrow IPC bytes, so an engine that bundles, splits or retries rows can
neither cut a part nor mix two parts. Unpacking copies no data.
"""

import json
from dataclasses import dataclass, field

import pyarrow as pa

from varve.ranges import Range


@dataclass(frozen=True, slots=True)
class PartMessage:
    """The rows of a part, on their way between stages."""

    rows: Range
    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)  # events, for the record of the part
    blocks: tuple[pa.RecordBatch, ...] = ()  # tokens of each block, if the tokenizer stage added them


def pack_message(message: PartMessage) -> pa.Table:
    """Pack a message into a table of one row."""
    return pa.table(
        {
            "shard": pa.array([message.rows.shard], pa.int32()),
            "start": pa.array([message.rows.start], pa.int64()),
            "stop": pa.array([message.rows.stop], pa.int64()),
            "counts": pa.array([json.dumps(message.counts)]),
            "table": _cell(_stream(message.table.schema, message.table.to_batches())),
            "blocks": _list_cell([_stream(block.schema, [block]) for block in message.blocks]),
        }
    )


def unpack_message(batch: pa.Table) -> PartMessage:
    """Unpack a message from a table of one row."""
    shard, start, stop, counts = (batch[name][0].as_py() for name in ("shard", "start", "stop", "counts"))
    blocks = batch["blocks"][0].values
    return PartMessage(
        Range(shard, start, stop),
        pa.ipc.open_stream(batch["table"][0].as_buffer()).read_all(),
        json.loads(counts),
        tuple(pa.ipc.open_stream(cell.as_buffer()).read_next_batch() for cell in blocks),
    )


def _stream(schema: pa.Schema, batches: list[pa.RecordBatch]) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return stream.getvalue()


def _cell(content: pa.Buffer) -> pa.Array:
    """A large_binary array with one value, without a copy."""
    offsets = pa.py_buffer(pa.array([0, content.size], pa.int64()).buffers()[1])
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _list_cell(contents: list[pa.Buffer]) -> pa.Array:
    cells = pa.concat_arrays([_cell(content) for content in contents]) if contents else pa.array([], pa.large_binary())
    return pa.LargeListArray.from_arrays(pa.array([0, len(cells)], pa.int64()), cells)
