"""JSON values reach the job exactly as they are in the file, in every layout that `datasets` accepts."""

import gzip
import json
import zipfile

import pyarrow as pa
import pytest

from varve.config.source import Source
from varve.source.open_dataset import open_dataset

DIGITS = [0.12345678901234567, 1e-12, -0.0]


@pytest.fixture
def read(tmp_path):
    """(content of each file, options of the source) → the columns as lists."""

    def write_and_read(*files: str, text="text", keep=(), **source) -> dict[str, list]:
        for number, content in enumerate(files):
            (tmp_path / f"{number}.json").write_text(content, encoding="utf-8")
        spec = Source(dataset="json", data_files=str(tmp_path / "*.json*"), text=text, keep=keep, **source)
        dataset = open_dataset(spec)
        whole = pa.concat_tables([table for shard in range(dataset.num_shards) for table in dataset.read(shard)])
        return whole.to_pydict()

    return write_and_read


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("date", ["2024-01-02", "2024-01-02 03:04:05", "2024-01-02T00:00:00+02:00"])
def test_texts_that_look_like_dates_stay_as_they_are(read, date):
    assert read(lines({"text": date}), lines({"text": "words"}))["text"] == [date, "words"]
    assert read(lines({"text": date}), types={"text": "string"})["text"] == [date, "words"]
    kept = read(lines({"text": "a", "on": date}), lines(), keep=("on",), types={"on": "string"})
    assert kept["on"] == [date]


@pytest.mark.parametrize("other", [5, True, {"a": [1.5]}])
def test_texts_next_to_a_value_of_another_type_get_no_quotes(read, other):
    texts = ['a "word"\nand more', '"all in quotes"', "5", None, "naïve 🙂"]
    first, then = lines({"text": "words"}), lines(*({"text": value} for value in [*texts, other]))
    assert read(first, then)["text"] == ["words", *texts, json.dumps(other, separators=(",", ":"))]


@pytest.mark.parametrize("write", [lambda rows: lines(*rows), lambda rows: json.dumps(rows, indent=1)])
def test_numbers_keep_all_their_digits(read, write):
    rows = [{"text": "a", "score": score, "mixed": mixed} for score, mixed in zip(DIGITS, [1, "x", 2], strict=True)]
    assert read(write(rows), keep=("score",))["score"] == DIGITS
    nested = [{"text": "a", "scores": {"all": DIGITS}}]
    assert read(write(nested), keep=("scores",))["scores"] == [{"all": DIGITS}]


def test_numbers_below_a_field_keep_all_their_digits(read):
    content = json.dumps({"rows": [{"text": "a", "score": score} for score in DIGITS]})
    assert read(content, keep=("score",), options={"field": "rows"})["score"] == DIGITS


def test_values_of_compressed_files_are_exact_too(read, tmp_path):
    with gzip.open(tmp_path / "9.jsonl.gz", "wt") as file:
        file.write(lines({"text": "2024-01-02"}, {"text": "2024-01-03"}))
    assert read(lines({"text": "words"}))["text"] == ["words", "2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ('{\n "text":\n "a"}\n{\n "text": "b"\n}\n', {}),
        ('["a", "b"]', {}),
        ('\ufeff[{"text": "a"}, {"text": "b"}]', {}),
        ('{"rows": [{"text": "a"}, {"text": "b"}]}', {"field": "rows"}),
        ('\ufeff{"text": "a"}\n\n\n{"text": "b"}', {}),
    ],
)
def test_json_in_any_layout_is_read(read, content, options):
    assert read(content, options=options)["text"] == ["a", "b"]


@pytest.mark.parametrize(("encoding", "text"), [("utf-16", "naïve 🙂"), ("cp1252", "naïve")])
def test_json_lines_of_another_encoding_are_read_in_chunks(tmp_path, encoding, text):
    content = "".join(json.dumps({"text": f"{text} {row}"}, ensure_ascii=False) + "\n" for row in range(500))
    (tmp_path / "0.json").write_text(content, encoding=encoding)
    options = {"encoding": encoding, "chunksize": 1000}
    dataset = open_dataset(Source(dataset="json", data_files=str(tmp_path / "0.json"), text="text", options=options))
    texts = [value for table in dataset.read(0, first=100) for value in table["text"].to_pylist()]
    assert texts == [f"{text} {row}" for row in range(100, 500)]


def test_members_of_an_archive_are_one_shard(tmp_path):
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        for name in "ab":
            archive.writestr(f"{name}.jsonl", lines({"text": name}))
    dataset = open_dataset(Source(dataset="json", data_files=str(tmp_path / "0.zip"), text="text"))
    assert dataset.num_shards == 1
    assert pa.concat_tables(dataset.read(0))["text"].to_pylist() == ["a", "b"]
