"""Parquet files with different schemas: unnamed columns have no influence, named columns keep their values."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.config.source import Source
from varve.errors import JobError
from varve.source.open_dataset import MIN_SHARD_ROWS, open_dataset


@pytest.fixture
def opened(tmp_path):
    """(columns of each file) → the dataset of these files."""

    def write_and_open(*files: dict, keep=("kept",), row_group_size=None, **source):
        for number, columns in enumerate(files):
            pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet", row_group_size=row_group_size)
        spec = Source(dataset="parquet", data_files=str(tmp_path / "*.parquet"), text="text", keep=keep, **source)
        return open_dataset(spec)

    return write_and_open


def values(dataset, name="kept") -> list:
    tables = [table for shard in range(dataset.num_shards) for table in dataset.read(shard)]
    assert all(table.schema == dataset.schema for table in tables)
    return [value for table in tables for value in table[name].to_pylist()]


def file(kept=None, **others) -> dict:
    columns = others if kept is None else {"kept": kept, **others}
    return {"text": ["a"] * len(next(iter(columns.values()))), **columns}


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), [1, 2**40]),
        (pa.array([2**40]), pa.array([1], pa.int32()), [2**40, 1]),
        (pa.array([1]), pa.array([1.5]), [1.0, 1.5]),
        (pa.nulls(1), pa.array(["x"]), [None, "x"]),
        (pa.array(["x"]), pa.array(["y"], pa.string_view()), ["x", "y"]),
        (pa.array(["x"], pa.large_string()), pa.array(["y"]).dictionary_encode(), ["x", "y"]),
        (pa.array([{"a": 1}]), pa.array([{"a": 2, "b": [3]}]), [{"a": 1, "b": None}, {"a": 2, "b": [3]}]),
    ],
)
def test_parquet_column_has_a_type_that_holds_the_values_of_all_files(opened, first, then, expected):
    assert values(opened(file(first), file(then))) == expected


def test_parquet_column_that_a_file_lacks_is_null_there(opened):
    assert values(opened(file([1, 2]), file(other=["x", "y"]))) == [1, 2, None, None]
    assert values(opened(file(other=["x", "y"]), file([1, 2]))) == [None, None, 1, 2]


def test_parquet_column_that_a_file_lacks_is_null_from_any_row_on(opened):
    other = list(range(2 * MIN_SHARD_ROWS))
    dataset = opened(file(other=other), file([1]), keep=("kept", "other"), row_group_size=MIN_SHARD_ROWS)
    assert dataset.shard_rows == (MIN_SHARD_ROWS, MIN_SHARD_ROWS, 1)
    assert values(dataset) == [None] * len(other) + [1]
    assert values(dataset, "other") == [*other, None]
    last = pa.concat_tables(dataset.read(1, first=MIN_SHARD_ROWS - 1))
    assert last.select(["kept", "other"]).to_pylist() == [{"kept": None, "other": other[-1]}]


def test_message_on_a_column_of_numbers_and_texts_has_the_files_and_the_fix(opened):
    with pytest.raises(JobError, match=r"'kept' holds int64 in \S+0\.parquet, text in \S+1\.parquet.*{kept: string}"):
        opened(file([1]), file(["x"]))
    assert values(opened(file([1]), file(["x"]), types={"kept": "string"})) == ["1", "x"]


def test_parquet_columns_that_are_not_needed_may_have_any_type(opened):
    others = {"map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "key": pa.array([b"0" * 16], pa.uuid())}
    assert values(opened(file([7], **others))) == [7]
    assert values(opened(file([7], **others), keep=("key",)), "key") == [b"0" * 16]
    with pytest.raises(JobError, match=r"source\.keep: a column of \S+0\.parquet.*: .* map<"):
        opened(file([7], **others), keep=("map",))


def test_message_on_an_unknown_column_lists_the_columns(opened):
    with pytest.raises(JobError, match=r"no column 'kept' in parquet\. Its columns: text, other"):
        opened(file(other=[1]))


def test_file_that_is_not_parquet_is_named(opened, tmp_path):
    (tmp_path / "+.parquet").write_text("")
    with pytest.raises(JobError, match=r"\+\.parquet.*: ArrowInvalid: Parquet file size is 0 bytes"):
        opened(file([1]))
