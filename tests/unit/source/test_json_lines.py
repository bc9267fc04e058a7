"""JSON values reach the job as the file holds them, whatever stands beside them."""

import gzip
import json

import pyarrow as pa
import pytest

from varve.config.source import Source
from varve.source.open_dataset import open_dataset

DIGITS = [0.12345678901234567, 1e-12, -0.0]


@pytest.fixture
def read(tmp_path):
    """(what each file holds, how it is read) → the columns as lists."""

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
def test_texts_beside_a_value_of_another_type_get_no_quotes(read, other):
    texts = ['a "word"\nand more', '"all in quotes"', "5", None, "naïve 🙂"]
    first, then = lines({"text": "words"}), lines(*({"text": value} for value in [*texts, other]))
    assert read(first, then)["text"] == ["words", *texts, json.dumps(other, separators=(",", ":"))]


@pytest.mark.parametrize("write", [lambda rows: lines(*rows), lambda rows: json.dumps(rows, indent=1)])
def test_numbers_keep_all_their_digits(read, write):
    rows = [{"text": "a", "score": score, "mixed": mixed} for score, mixed in zip(DIGITS, [1, "x", 2], strict=True)]
    assert read(write(rows), keep=("score",))["score"] == DIGITS
    nested = [{"text": "a", "scores": {"all": DIGITS}}]
    assert read(write(nested), keep=("scores",))["scores"] == [{"all": DIGITS}]


def test_exact_values_come_out_of_compressed_files_too(read, tmp_path):
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
