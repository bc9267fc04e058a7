"""A whole part in one row of a table: what travels between the stages.

Its range, what was counted on the way, and its tables as Arrow IPC bytes in cells. An engine that bundles,
splits or retries rows can then neither cut a part nor mix the rows of two. Reading it back copies nothing.
"""

import json
from dataclasses import dataclass, field

import pyarrow as pa

from varve.ranges import Range


@dataclass(frozen=True, slots=True)
class PartMessage:
    """A part on its way."""

    rows: Range
    table: pa.Table
    counts: dict[str, int] = field(default_factory=dict)  # what happened to it
    blocks: tuple[pa.RecordBatch, ...] = ()  # the tokens of its blocks, between tokenizer and encoder


def pack_message(part: PartMessage) -> pa.Table:
    """One row that holds the part."""
    return pa.table(
        {
            "shard": pa.array([part.rows.shard], pa.int32()),
            "start": pa.array([part.rows.start], pa.int64()),
            "stop": pa.array([part.rows.stop], pa.int64()),
            "counts": pa.array([json.dumps(part.counts)]),
            "table": _cell(_stream(part.table.schema, part.table.to_batches())),
            "blocks": _list_cell([_stream(block.schema, [block]) for block in part.blocks]),
        }
    )


def unpack_message(batch: pa.Table) -> PartMessage:
    """The part in a one-row table."""
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
    offsets = pa.py_buffer(pa.array([0, content.size], pa.int64()).buffers()[1])
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _list_cell(contents: list[pa.Buffer]) -> pa.Array:
    cells = pa.concat_arrays([_cell(content) for content in contents]) if contents else pa.array([], pa.large_binary())
    return pa.LargeListArray.from_arrays(pa.array([0, len(cells)], pa.int64()), cells)
