import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.outputs import column
from varve.config.feature import Feature
from varve.encoder.feature_columns import plan_features
from varve.encoder.feature_plan import FeaturePlan, ModelShape
from varve.errors import RunError
from varve.output.part_file import encode_part, list_ranges, part_name, read_part, write_part
from varve.output.schema import output_schema
from varve.ranges import Range
from varve.storage.object_store import Storage

PLAN = plan_features({"e": Feature(pool="mean")}, ModelShape(2, 4, 2, 0, False), dtype="float32")
SCHEMA = output_schema(PLAN, pa.schema([("id", pa.string())]), pairs=False)
ROWS = Range(3, 10, 14)


def table(start: int = 10, rows: int = 4) -> pa.Table:
    vectors = np.random.default_rng(start).normal(size=rows * 4).astype(np.float32)
    good = [number % 4 != 1 for number in range(rows)]
    mask = pa.array([not flag for flag in good])
    columns = {
        "id": [f"row {number}" for number in range(rows)],
        "e": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4, mask=mask),
        "num_tokens": [number + 5 if flag else None for number, flag in enumerate(good)],
        "truncated": [number == 3 if flag else None for number, flag in enumerate(good)],
        "error": [None if flag else "worker died" for flag in good],
        "shard": [3] * rows,
        "row": range(start, start + rows),
    }
    return pa.table({name: pa.array(column, SCHEMA.field(name).type) for name, column in columns.items()}, SCHEMA)


def test_written_part_is_read_back_and_its_footer_records_its_counts(tmp_path):
    storage = Storage(str(tmp_path))
    part = write_part(storage, ROWS, table(), "print")
    content = (tmp_path / "data/part-00003-000000000010-000000000014.parquet").read_bytes()
    assert pq.read_table(io.BytesIO(content)).equals(table())
    assert (part.num_tokens, part.num_errors, part.num_truncated) == (20, 1, 1)
    assert (part.error_reasons, part.num_null_texts) == ({"worker died": 1}, 0)
    assert (part.shortest, part.longest) == ((10, 5), (13, 8))
    assert part.file_bytes == len(content)
    assert read_part(storage, ROWS) == read_part(storage, ROWS, len(content)) == part
    assert list(list_ranges(storage)) == [(ROWS, len(content))]


def test_features_are_stored_without_dictionary_and_statistics():
    content = encode_part(ROWS, table(), "print")[1]
    footer = pq.read_metadata(io.BytesIO(content)).row_group(0)
    columns = {footer.column(index).path_in_schema: footer.column(index) for index in range(footer.num_columns)}
    vector = columns["e.list.element"]
    assert "BYTE_STREAM_SPLIT" in vector.encodings
    assert vector.statistics is None
    assert columns["row"].statistics.min == 10


def test_sparse_vectors_are_stored_without_dictionary_and_their_weights_split():
    definition = column("s", 30_000, form="sparse")
    plan = FeaturePlan((definition,), 1, 1, special_tokens=False)
    lists = {"s_ids": [[1, 7], None, [], [5]], "s_weights": [[0.5, 2.0], None, [], [1.0]]}
    others = {name: table()[name] for name in table().column_names if name != "e"}
    schema = output_schema(plan, pa.schema([("id", pa.string())]), pairs=False)
    arrays = {name: pa.array(cells, schema.field(name).type) for name, cells in lists.items()} | others
    stored = pa.table([arrays[name] for name in schema.names], schema=schema)
    content = encode_part(ROWS, stored, "print")[1]
    footer = pq.read_metadata(io.BytesIO(content)).row_group(0)
    columns = {footer.column(index).path_in_schema: footer.column(index) for index in range(footer.num_columns)}
    ids, weights = columns["s_ids.list.element"], columns["s_weights.list.element"]
    assert "BYTE_STREAM_SPLIT" in weights.encodings
    assert set(ids.encodings) == {"PLAIN", "RLE"}
    assert (ids.statistics, weights.statistics) == (None, None)
    assert pq.read_table(io.BytesIO(content)).equals(stored)


def test_part_with_only_error_rows_has_no_shortest_text():
    only_errors = table().filter(pa.array([False, True, False, False]))
    part, _ = encode_part(Range(3, 11, 12), only_errors, "print")
    assert (part.num_errors, part.shortest, part.longest) == (1, None, None)


def test_empty_part_that_ends_a_shard_is_valid(tmp_path):
    storage = Storage(str(tmp_path))
    write_part(storage, Range(0, 8, 8), SCHEMA.empty_table(), "print")
    assert pq.read_table(tmp_path / part_name(Range(0, 8, 8))).schema.names == SCHEMA.names


def test_second_writer_gets_the_first_writers_part(tmp_path):
    storage = Storage(str(tmp_path))
    first = write_part(storage, ROWS, table(), "print")
    second = write_part(storage, ROWS, table(), "print")
    assert second == first


def test_part_of_another_job_is_refused(tmp_path):
    storage = Storage(str(tmp_path))
    write_part(storage, ROWS, table(), "print")
    with pytest.raises(RunError, match="written by another job"):
        write_part(storage, ROWS, table(start=10, rows=4).slice(0, 4), "other print")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, but long enough"])
def test_error_for_a_file_that_is_not_a_part_names_the_file(tmp_path, content):
    storage = Storage(str(tmp_path))
    storage.create(part_name(ROWS), content)
    with pytest.raises(RunError, match="part-00003"):
        read_part(storage, ROWS, len(content) or None)


def test_other_objects_in_the_folder_are_skipped(tmp_path):
    storage = Storage(str(tmp_path))
    for name in ("data/part-1-2-3.parquet", "data/notes.txt", "data/part-00000-000000000000-000000000004.parquet.tmp"):
        storage.create(name, b"x")
    assert list(list_ranges(storage)) == []
