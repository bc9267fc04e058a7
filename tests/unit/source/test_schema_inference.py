"""Columns of CSV and JSON: unnamed columns have no influence, named columns keep their values."""

import io
import json
from datetime import date

import pyarrow as pa
import pytest

from varve.config.job import Job
from varve.config.source import Source
from varve.errors import JobError, RunError
from varve.source import schema_inference
from varve.source.open_dataset import open_dataset

# More rows than one chunk of CSV and than the inspected head of a JSON file.
MANY = 12_000
OTHER_CSV = {"sep": ";", "quotechar": "'", "comment": "#"}
CARD = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: kept
    dtype: {class_label: {names: {"0": neg, "1": pos}}}
configs:
- config_name: default
  data_files: [{split: train, path: train.csv}]
---
"""


@pytest.fixture
def read(tmp_path):
    """(content of each file, options of the source) → the columns as lists."""

    def write_and_read(*files: list[dict] | str, keep=("kept",), **source) -> dict[str, list]:
        for number, rows in enumerate(files):
            content = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{number}.part").write_text(content)
        kind = "csv" if isinstance(files[-1], str) else "json"
        source = {"text": "text", "keep": keep, **source}
        spec = Source(dataset=kind, data_files=str(tmp_path / "*.part"), **source)
        dataset = open_dataset(spec)
        tables = [table for shard in range(dataset.num_shards) for table in dataset.read(shard)]
        assert all(table.schema == dataset.schema and "extension" not in str(table.schema) for table in tables)
        return {name: [value for table in tables for value in table[name].to_pylist()] for name in spec.columns}

    return write_and_read


def rows(*kept, **others) -> list[dict]:
    return [{"text": f"text {value}", "kept": value, **others} for value in kept]


def csv(*kept) -> str:
    return "text,kept\n" + "".join(f"a text,{value}\n" for value in kept)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"note": "x"}),
        ({"note": None}, {"note": "x"}),
        ({"note": 1}, {"note": 1.5}),
        ({"note": 1}, {"note": "x"}),
        ({"note": {"a": 1}}, {"note": {"a": 1, "b": [2]}}),
    ],
)
def test_json_keys_that_are_not_needed_may_appear_and_change(read, first, then):
    assert read(rows(1, 2, **first), rows(3, 4, **then))["kept"] == [1, 2, 3, 4]


def test_json_key_that_appears_late_is_ignored_if_not_needed(read):
    long = {"pad": "x" * 6_000_000}
    assert read(rows(1, 2, **long) + rows(3, late=[1]))["kept"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([None, None], ["x", None]),
        ([1, 2], [1.5, None]),
        ([{"a": 1, "b": None}], [{"a": 2, "b": [3]}]),
        ([None], [7]),
    ],
)
def test_kept_key_has_a_type_that_holds_the_values_of_all_files(read, first, then):
    assert read(rows(*first), rows(*then))["kept"] == first + then


def test_first_file_without_rows_does_not_hide_the_columns(read):
    assert read([], rows("x"))["kept"] == ["x"]
    assert read(csv(), csv(1, 2))["kept"] == [1, 2]


def test_message_on_a_kept_key_of_several_types_has_the_files_and_the_fix(read):
    with pytest.raises(JobError, match=r"'kept' holds int64 in \S+0\.part, text in \S+1\.part.*types: {kept: string}"):
        read(rows(1), rows("x"))
    assert read(rows(1), rows("x"), types={"kept": "string"})["kept"] == ["1", "x"]


def test_kept_key_of_several_types_in_one_file_is_text(read):
    assert read(rows(1, "x"))["kept"] == ["1", '"x"']


def test_kept_values_of_several_types_within_others_are_text_there(read):
    assert read(rows([1, {"a": 2}], [], None))["kept"] == [["1", '{"a":2}'], [], None]
    assert read(rows({"a": [{"b": 1}]}, {"a": [{"b": "x"}]}))["kept"] == [{"a": [{"b": "1"}]}, {"a": [{"b": '"x"'}]}]


def test_kept_key_that_first_rows_lack_has_the_type_of_the_job(read):
    late = rows(None, None, pad="x" * 6_000_000) + rows("x")
    with pytest.raises(RunError, match=r"name it in source\.types"):
        read(late)
    assert read(late, types={"kept": "string"})["kept"] == [None, None, "x"]
    missing = [{"text": "a", "pad": "x" * 6_000_000}] * 2 + rows(5)
    with pytest.raises(JobError, match="no column 'kept'"):
        read(missing)
    assert read(missing, types={"kept": "int64"})["kept"] == [None, None, 5]


@pytest.mark.parametrize(
    ("first", "then", "values"),
    [
        (1, ["", 2**53 + 1, " 7", "+8", "NA"], [None, 2**53 + 1, 7, 8, None]),
        (True, ["", "FALSE"], [None, False]),
        ("x", ["007", ""], ["007", None]),
        (1.5, ["", "2"], [None, 2.0]),
    ],
)
def test_csv_cell_that_is_empty_after_many_rows_is_null(read, first, then, values):
    assert read(csv(*[first] * MANY, *then))["kept"][MANY:] == values


def test_message_on_a_late_fraction_has_the_row_and_the_fix(read):
    late = csv(*[1] * MANY, "7.5")
    with pytest.raises(RunError, match=r"after row 1\d{4}: .*'7\.5'.*name it in source\.types"):
        read(late)
    assert read(late, types={"kept": "float64"})["kept"][-2:] == [1.0, 7.5]
    assert read(csv(1), csv("7.5", ""))["kept"] == [1.0, 7.5, None]


def test_csv_column_that_a_file_lacks_is_null_there(read):
    assert read("text\na\n", csv(1, ""), "kept,text\n3,b\n")["kept"] == [None, 1, None, 3]


def test_csv_file_without_the_text_column_is_refused_with_its_columns(read, monkeypatch):
    message = r"1\.part.* it has no text column 'text'; its columns: body, kept\. Rename its column"
    with pytest.raises(JobError, match=message):
        read(csv(1), "body,kept\na,1\n")
    monkeypatch.setattr(schema_inference, "_MAX_INSPECTED_FILES", 1)
    with pytest.raises(RunError, match=message):
        read(csv(1), "body,kept\na,1\n")


@pytest.mark.parametrize("header", ["text,kept,text", 'text,"kept",kept'])
@pytest.mark.parametrize("files_before", [0, 1])
def test_csv_column_that_exists_twice_is_refused(read, monkeypatch, header, files_before):
    monkeypatch.setattr(schema_inference, "_MAX_INSPECTED_FILES", 1)
    with pytest.raises((JobError, RunError), match=r"part.*2 of its columns are named '(text|kept)'\. Rename all but"):
        read(*[csv(1)] * files_before, f"{header}\na,1,2\n")


def test_csv_is_read_from_files_that_cannot_seek(tmp_path, monkeypatch):
    """As from a web server that ignores ranges, which sends a few bytes at a time."""
    (tmp_path / "0.csv").write_text("text,kept,keptx\n" + "a,1,2\n" * 50_000)

    class Pipe(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 13))

        def seek(self, *_):
            raise ValueError

    monkeypatch.setattr("varve.source.readers.xopen", lambda path, _: Pipe(path))
    dataset = open_dataset(Source(dataset="csv", data_files=str(tmp_path / "0.csv"), text="text", keep=("kept",)))
    assert sum(map(len, dataset.read(0))) == 50_000


def test_csv_columns_that_only_resemble_repeated_ones_are_read(read):
    assert read("text,kept,x,x,Text,kept.1\na,1,2,3,4,5\n")["kept"] == [1]
    assert read("# a title\n\n'text';kept\n'a;b';1\n", options=OTHER_CSV) == {"text": ["a;b"], "kept": [1]}
    assert read("text,kept;a,1;", options={"lineterminator": ";"})["kept"] == [1]
    assert read("a title\ntext,kept\na,1\n", options={"header": 1})["kept"] == [1]
    assert read("a,1\n", options={"names": ["text", "kept"], "header": None})["kept"] == [1]


@pytest.mark.parametrize(("names", "values"), [(("neg", "pos", ""), [0, 1, None]), ((1, 0, 1), [1, 0, 1])])
def test_labels_of_the_dataset_card_are_kept_as_numbers(tmp_path, names, values):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "train.csv").write_text("text,kept\n" + "".join(f"a,{name}\n" for name in names))
    dataset = open_dataset(Source(dataset=str(tmp_path), text="text", keep=("kept",)))
    assert pa.concat_tables(dataset.read(0))["kept"].to_pylist() == values


def test_text_column_that_is_null_in_all_inspected_rows_is_noted(tmp_path):
    (tmp_path / "0.json").write_text('{"text": null, "kept": null}\n' * 3)
    source = {"dataset": "json", "data_files": str(tmp_path / "0.json"), "text": "text", "keep": ("kept",)}
    [note] = open_dataset(Source(**source)).notes
    assert "'text' is null in every inspected row" in note
    assert open_dataset(Source(**source, types={"text": "string"})).notes == ()


def test_nested_json_is_read_as_json_text_if_named_text(read):
    with pytest.raises(JobError, match=r"holds struct<a: int64>, not text.* as JSON text: source\.types: {kept: s"):
        read(rows({"a": 1}), keep=(), text="kept")
    assert read(rows({"a": 1}), types={"kept": "string"})["kept"] == ['{"a":1}']


def test_csv_file_that_is_empty_has_no_rows(read):
    assert read("", csv(1), "")["kept"] == [1]


@pytest.mark.parametrize("rows_before", [0, MANY])
def test_message_on_another_encoding_has_the_option(tmp_path, rows_before):
    path = tmp_path / "0.csv"
    path.write_bytes(b"text\n" + b"a\n" * rows_before + "naïve\n".encode("cp1252"))
    source = {"dataset": "csv", "data_files": str(path), "text": "text"}
    with pytest.raises((JobError, RunError), match=r"0\.csv.*UnicodeDecodeError.*options: {encoding: cp1252}"):
        list(open_dataset(Source(**source)).read(0))
    dataset = open_dataset(Source(**source, options={"encoding": "cp1252"}))
    assert [table["text"][-1].as_py() for table in dataset.read(0)][-1] == "naïve"


def test_message_on_a_value_has_no_advice_about_the_network(read):
    with pytest.raises(JobError, match="OverflowError") as raised:
        read(csv(10**25))
    assert "Check the address" not in str(raised.value)


def test_csv_codes_keep_leading_zeros_if_named_text(read):
    assert read(csv("007"), types={"kept": "string"})["kept"] == ["007"]
    assert read(csv("2024-01-02"), types={"kept": "date32"})["kept"] == [date(2024, 1, 2)]


def test_csv_options_that_only_pandas_knows_are_applied(read):
    assert read(csv('"1,000"'), options={"thousands": ","})["kept"] == [1000]
    assert read(csv("yes", "no"), options={"true_values": ["yes"], "false_values": ["no"]})["kept"] == [True, False]


def test_digits_as_texts_are_refused_unless_named_text(read):
    with pytest.raises(JobError, match=r"'text' holds int64, not text.*types: {text: string}"):
        read("text,kept\n011,1\n")
    assert read("text,kept\n011,1\n", types={"text": "string"})["text"] == ["011"]
    assert read("text,kept\n011,1\n", "text,kept\nword,1\n")["text"] == ["011", "word"]


def test_type_that_does_not_exist_is_refused(read):
    with pytest.raises(JobError, match=r"source\.types\.kept: 'strin'"):
        read(rows(1), types={"kept": "strin"})


JOB = {"source": {"dataset": "d", "text": "text"}, "model": {"name": "m"}, "output": {"path": "o"}}


def test_type_of_a_column_that_is_not_read_is_refused():
    with pytest.raises(JobError, match="types names 'other', which is neither a text column nor kept"):
        Job.parse({**JOB, "source": {**JOB["source"], "types": {"other": "string"}}})


def test_types_are_part_of_a_job_s_identity_only_if_set():
    plain = Job.parse(JOB)
    typed = Job.parse({**JOB, "source": {**JOB["source"], "types": {"text": "string"}}})
    assert not any(key.startswith("source.types") for key in plain.identity())
    assert typed.identity() == {**plain.identity(), "source.types.text": "string"}
