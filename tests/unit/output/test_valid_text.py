"""Kept texts with bytes that are not UTF-8: every reader can read the file that holds them."""

import io

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.output.part_reader import read_batches, read_columns
from varve.output.valid_text import replace_invalid
from varve.verification.kept_columns import compare_kept

CONTENTS = [b"fine", b"caf\xe9 \xc3\xbc", None, b"a\xed\xa0\x80", b""]
TEXTS = ["fine", "caf\ufffd \u00fc", None, "a\ufffd\ufffd\ufffd", ""]


def table(arrow_type) -> pa.Table:
    texts = pa.array(CONTENTS, pa.binary()).cast(arrow_type, safe=False)
    return pa.table(
        {"text": pa.chunked_array([texts, texts]), "bytes": CONTENTS * 2, "id": range(10), "other": ["x"] * 10}
    )


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.large_string()])
def test_bytes_that_are_not_utf8_are_replaced_in_texts_only(arrow_type, tmp_path):
    replaced = replace_invalid(table(arrow_type))
    assert replaced.schema == table(arrow_type).schema
    assert replaced.to_pydict() == {**table(pa.binary()).to_pydict(), "text": TEXTS * 2}
    pq.write_table(replaced, tmp_path / "0.parquet")
    assert pl.read_parquet(tmp_path / "0.parquet")["text"].to_list() == TEXTS * 2
    assert [text for (text,) in duckdb.sql(f"select text from '{tmp_path}/0.parquet'").fetchall()] == TEXTS * 2


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.large_string()])
def test_part_with_bytes_that_are_not_utf8_is_refused_when_it_is_read(arrow_type):
    buffer = io.BytesIO()
    pq.write_table(table(arrow_type), buffer)
    content = buffer.getvalue()
    assert len(read_columns(pa.BufferReader(content), ["bytes", "id"], 10, len(content))) == 10
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        read_columns(pa.BufferReader(content), None, 10, len(content))
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        list(read_batches(pa.BufferReader(content), ["text"], 10, len(content), 3))


def test_valid_texts_are_not_copied():
    valid = pa.table({"text": ["a", None, "\U0001f600"]})
    assert replace_invalid(valid) is valid


def test_replaced_text_is_what_the_row_of_the_source_gives():
    buffer = io.BytesIO()
    pq.write_table(replace_invalid(table(pa.string())), buffer)
    stored = pq.read_table(pa.BufferReader(buffer.getvalue()))
    for row in range(len(CONTENTS)):
        source = table(pa.string()).slice(row, 1)
        assert compare_kept(["text", "bytes"], stored.slice(row, 1), source) == {}
        assert compare_kept(["text"], stored.slice(row, 1), table(pa.string()).slice((row + 1) % 5, 1))
