"""A small file cannot make a command decode far more than a part can hold."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.output.part_reader import ImplausiblePartError, read_columns

REPEATED = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 50_000]))
BOMBS = {
    "a string for every row": pa.table({"error": REPEATED}),
    "a list of strings for every row": pa.table(
        {"tags": pa.ListArray.from_arrays(pa.array(np.arange(100_001, dtype=np.int32)), REPEATED)}
    ),
    "a struct of strings for every row": pa.table({"made": pa.StructArray.from_arrays([REPEATED], ["by"])}),
    "numbers that are null": pa.table({"n": pa.nulls(2**23, pa.int64())}),
}


def written(table: pa.Table, times: int = 1) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        for _ in range(times):
            writer.write_table(table)
    return buffer.getvalue()


def read(content: bytes, names=None, *, rows: int) -> pa.Table:
    return read_columns(pa.BufferReader(content), names, rows, len(content))


@pytest.mark.parametrize("name", BOMBS)
def test_small_file_that_decodes_to_gigabytes_is_refused(name):
    table, times = BOMBS[name], 40 if name == "numbers that are null" else 1
    content = written(table, times)
    assert len(content) < 1_000_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ImplausiblePartError, match="decode to more than"):
        read(content, rows=len(table) * times)
    assert pa.total_allocated_bytes() - before < 2**24


def test_other_rows_than_the_name_says_are_refused():
    content = written(pa.table({"row": range(10)}))
    with pytest.raises(ImplausiblePartError, match="it holds 10 rows, its name says 9"):
        read(content, rows=9)


def test_columns_are_read_in_the_order_of_the_request_with_their_types():
    table = pa.table(
        {
            "a.b": [1, 2],
            "s": pa.array(["x", None]).dictionary_encode(),
            "view": pa.array(["x", "y"], pa.string_view()),
            "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
            "a": pa.array([[1.5], None], pa.list_(pa.float32())),
        }
    )
    content = written(table)
    assert read(content, rows=2).equals(table)
    assert read(content, ["map", "a"], rows=2).equals(table.select(["map", "a"]))
    with pytest.raises(KeyError, match="absent"):
        read(content, ["absent"], rows=2)


def test_much_repeated_text_within_the_limit_is_read():
    table = pa.table({"text": ["the same text " * 100] * 20_000})
    assert read(written(table), rows=20_000).equals(table)
