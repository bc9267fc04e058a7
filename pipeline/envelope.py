"""A whole part in one row of a table: what travels between the stages.

Its range, the seconds spent on it so far, and its table as Arrow IPC bytes in one cell. An engine that bundles, splits
or retries rows can then neither cut a part nor mix the rows of two. Reading it back copies nothing.
"""

import json

import pyarrow as pa

from pipeline.ranges import Range


def seal(rows: Range, table: pa.Table, seconds: dict[str, float]) -> pa.Table:
    """One row that holds a whole part.

    Args:
        rows: the part's range.
        table: its rows.
        seconds: stage → seconds spent on it.
    """
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    content = stream.getvalue()
    offsets = pa.py_buffer(pa.array([0, content.size], pa.int64()).buffers()[1])
    return pa.table(
        {
            "shard": pa.array([rows.shard], pa.int32()),
            "start": pa.array([rows.start], pa.int64()),
            "stop": pa.array([rows.stop], pa.int64()),
            "seconds": pa.array([json.dumps(seconds)]),
            "table": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content]),
        }
    )


def unseal(batch: pa.Table) -> tuple[Range, pa.Table, dict[str, float]]:
    """(range, table, seconds) of a one-row batch."""
    shard, start, stop, seconds = (batch[name][0].as_py() for name in ("shard", "start", "stop", "seconds"))
    with pa.ipc.open_stream(batch["table"][0].as_buffer()) as reader:
        return Range(shard, start, stop), reader.read_all(), json.loads(seconds)
