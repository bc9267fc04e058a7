"""Parquet files with different schemas: unnamed columns have no influence, named columns keep their values."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.config.source import Source
from varve.errors import JobError, RunError
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


@pytest.mark.parametrize("types", [{}, {"map": "string"}])
def test_map_is_not_kept_and_the_message_has_a_way(opened, types):
    maps = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    for column in (maps, pa.ListArray.from_arrays([0, 1], maps)):
        with pytest.raises(JobError, match=r"source\.keep: column 'map' of \S+0\.parquet .*map<.* list of structs"):
            opened(file(map=column), keep=("map",), types=types)


NESTED = {
    "struct": (pa.array([{"n": 1, "body": "a"}]), r'"text"\."body"'),
    "struct without a text": (pa.array([{"n": 1}]), r'"text"\."FIELD"'),
    "list": (pa.array([["a", "b"]]), r"array_to_string\(\"text\", ' '\)"),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), r'"text"::VARCHAR'),
}


@pytest.mark.parametrize("types", [{}, {"text": "string"}])
@pytest.mark.parametrize("column", NESTED)
def test_nested_text_is_refused_with_a_way_that_leads_on(opened, column, types):
    values, way = NESTED[column]
    with pytest.raises(
        JobError, match=rf"source\.text: column 'text' holds \S+.*, not text\. Write .* {way}"
    ) as raised:
        opened({"text": values, "kept": [1]}, types=types)
    assert "source.types" not in str(raised.value)


def test_other_types_are_read_as_text_if_named_text(opened):
    for number in (pa.array([b"a"]), pa.array([1]), pa.array(["a"]).dictionary_encode()):
        assert len(values(opened({"text": number, "kept": [1]}, types={"text": "string"}), "text")) == 1
    with pytest.raises(JobError, match=r"source\.types\.kept: in \S+0\.parquet .*struct.* cannot be read as int64"):
        opened(file([{"a": 1}]), types={"kept": "int64"})


def many(tmp_path, odd: pa.Table, **source):
    """Ten files, of which the fifth, which is not inspected, is odd."""
    usual = pa.table({"text": ["a"], "kept": [1]})
    for number in range(10):
        pq.write_table(odd if number == 4 else usual, tmp_path / f"{number}.parquet")
    files = str(tmp_path / "*.parquet")
    return open_dataset(Source(dataset="parquet", data_files=files, text="text", keep=("kept",), **source))


TWICE = pa.table([["a"], [1], [2]], names=["text", "kept", "kept"])
ODD = [
    (TWICE, r"4\.parquet.*2 of its columns are named 'kept'\. Rename all but one"),
    (pa.table({"body": ["a"], "kept": [1]}), r"4\.parquet.*no text column 'text'; its columns: body, kept\. Rename"),
    (
        pa.table({"text": ["a"], "kept": [{"a": 1}]}),
        r"4\.parquet.*cast array of type struct<a: int64> to int64",
    ),
]


@pytest.mark.parametrize(("odd", "message"), ODD)
def test_columns_of_each_file_are_checked_before_a_run(tmp_path, odd, message):
    with pytest.raises(JobError, match=message):
        many(tmp_path, odd)
    dataset = many(tmp_path, odd, options={"filters": [["text", "==", "a"]]})  # footers are then not read
    with pytest.raises(RunError, match=message):
        list(dataset.read(4))


def test_column_that_exists_twice_is_refused_only_if_needed(tmp_path):
    pq.write_table(TWICE, tmp_path / "0.parquet")
    source = {"dataset": "parquet", "data_files": str(tmp_path / "0.parquet"), "text": "text"}
    assert values(open_dataset(Source(**source)), "text") == ["a"]
    with pytest.raises(JobError, match="2 of its columns are named 'kept'"):
        open_dataset(Source(**source, keep=("kept",)))


def test_message_on_a_column_of_numbers_and_structs_has_no_type_that_cannot_hold_both(opened):
    with pytest.raises(JobError, match=r"nested values in \S+1\.parquet\. Write one type to all files"):
        opened(file([1]), file([{"a": 1}]))


def test_lists_of_nulls_are_kept(opened):
    assert values(opened(file([[None, None]] * 3000))) == [[None, None]] * 3000


def test_message_on_an_unknown_column_lists_the_columns(opened):
    with pytest.raises(JobError, match=r"no column 'kept' in parquet\. Its columns: text, other"):
        opened(file(other=[1]))


def test_file_that_is_not_parquet_is_named(opened, tmp_path):
    (tmp_path / "+.parquet").write_text("")
    with pytest.raises(JobError, match=r"\+\.parquet.*: ArrowInvalid: Parquet file size is 0 bytes"):
        opened(file([1]))
