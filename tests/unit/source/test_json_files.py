"""JSON values reach the job exactly as they are in the file, in every layout that `datasets` accepts."""

import gzip
import json
import zipfile

import pyarrow as pa
import pytest

from varve.config.source import Source
from varve.errors import JobError, RunError
from varve.source import bounded_lines
from varve.source.open_dataset import open_dataset

TEXT = {"text": "string"}
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
    assert read(write(rows), keep=("mixed",))["mixed"] == ["1", '"x"', "2"]
    rows = [{"text": "a", "mixed": mixed} for mixed in [[], *DIGITS]]
    assert read(write(rows), keep=("mixed",))["mixed"] == ["[]", *map(str, DIGITS)]
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


def raw_texts(dataset) -> list[bytes | None]:
    tables = [table for shard in range(dataset.num_shards) for table in dataset.read(shard)]
    return [value for table in tables for value in table["text"].cast(pa.large_binary()).to_pylist()]


@pytest.mark.parametrize("rows_before", [0, 30_000])  # in the inspected head, or after it
@pytest.mark.parametrize("write", ["".join, lambda rows: "[" + ",".join(rows) + "]"])
def test_half_a_surrogate_pair_is_an_invalid_text_of_its_row_only(tmp_path, write, rows_before):
    row, pair = '{"text": "a text of forty characters, or so ..."}\n', '{"text": "\\ud83d\\ude00 \\\\ud800"}\n'
    (tmp_path / "0.json").write_text(write([row] * rows_before + ['{"text": "a \\ud800 b"}\n', pair]))
    dataset = open_dataset(Source(dataset="json", data_files=str(tmp_path / "0.json"), text="text"))
    texts = raw_texts(dataset)
    assert len(texts) == rows_before + 2
    assert texts[-2:] == [b"a \xed\xa0\x80 b", "\U0001f600 \\ud800".encode()]
    with pytest.raises(UnicodeDecodeError):
        texts[-2].decode()


def test_half_a_surrogate_pair_in_kept_values_becomes_the_replacement_character(read):
    kept = '"a \\udc00", "in": {"k": ["\\ud800"]}, "mixed": [1, "\\ud800"], "not needed \\ud800": 1'
    content = f'{{"text": "x", "kept": {kept}}}\n{{"text": "y", "kept": null}}\n'
    columns = read(content, keep=("kept", "in", "mixed"))
    assert columns["kept"] == ["a \ufffd", None]
    assert columns["in"] == [{"k": ["\ufffd"]}, None]
    assert columns["mixed"] == [["1", '"\ufffd"'], None]
    assert columns["text"] == ["x", "y"]


def test_bytes_that_are_not_utf8_stay_in_the_text_of_their_row(tmp_path):
    mixed = b'{"text": 5}\n'  # the chunk is then parsed in Python
    (tmp_path / "0.json").write_bytes(b'{"text": "caf\xe9"}\n{"text": "b"}\n' + mixed)
    dataset = open_dataset(Source(dataset="json", data_files=str(tmp_path / "0.json"), text="text", types=TEXT))
    assert raw_texts(dataset) == [b"caf\xe9", b"b", b"5"]


@pytest.mark.parametrize("start", ["[null,null]", "[[null,null]]", '{"a": [null,null]}'])
@pytest.mark.parametrize("then", ["[null,null]", '["a","b"]', '[{"a":1}]', "[[1,2]]"])
def test_lists_of_nulls_are_read_whatever_follows(tmp_path, start, then):
    values = [start] * 2000 + [then] * 2000
    (tmp_path / "0.json").write_text("".join(f'{{"text": "a", "kept": {value}}}\n' for value in values))
    source = {"dataset": "json", "data_files": str(tmp_path / "0.json"), "text": "text"}
    assert sum(map(len, open_dataset(Source(**source)).read(0))) == 4000
    dataset = open_dataset(Source(**source, keep=("kept",)))
    kept = [value for table in dataset.read(0) for value in table["kept"].to_pylist()]
    assert all(is_kept(one, json.loads(value)) for one, value in zip(kept, values, strict=True))


def is_kept(kept, value) -> bool:
    """Whether a value is kept, as it is or, where types differ, as JSON."""
    if isinstance(kept, str):
        return kept in (value, json.dumps(value, separators=(",", ":")))
    if isinstance(kept, list) and isinstance(value, list):
        return len(kept) == len(value) and all(map(is_kept, kept, value))
    return kept == value


@pytest.mark.parametrize("deep", ["[" * 100_000 + "]" * 100_000, '{"a":' * 10_000 + "1" + "}" * 10_000])
def test_deeply_nested_values_that_are_not_needed_have_no_influence(read, deep):
    assert read(f'{{"text": "a", "deep": {deep}}}\n' + lines({"text": "b"}))["text"] == ["a", "b"]
    with pytest.raises((JobError, RunError), match="RecursionError"):
        read(f'{{"text": {deep}}}\n' + lines({"text": "b"}))


def test_kept_texts_that_look_like_dates_stay_as_they_are(read):
    dates = ["2024-01-02T00:00:00+02:00", "2024-01-03"]
    rows = [{"text": date, "on": date, "all": [{"on": date}]} for date in dates]
    columns = read(lines(*rows), keep=("on", "all"))
    assert columns == {"text": dates, "on": dates, "all": [[{"on": date}] for date in dates]}


@pytest.mark.parametrize("end", ["", "\n"])
def test_last_line_may_have_no_end(read, end):
    rows = [{"text": "a" * 100}] * 30_000 + [{"text": "b", "late": 1}]
    assert read(lines(rows[-1]).strip() + end, keep=("late",))["late"] == [1]
    assert read(lines(*rows).strip() + end, options={"chunksize": 1_000_000})["text"] == [row["text"] for row in rows]


def test_line_without_end_is_refused_before_it_fills_the_memory(read, monkeypatch):
    monkeypatch.setattr(bounded_lines, "MAX_LINE_BYTES", 1 << 21)
    options = {"options": {"chunksize": 100_000}}
    assert len(read(lines(*[{"text": "a" * 100}] * 30_000), **options)["text"]) == 30_000
    for content in (lines({"text": "a" * 3_000_000}), json.dumps([{"text": "a" * 100}] * 30_000)):
        with pytest.raises(JobError, match="more than 1 GiB without the end of a row"):
            read(content, **options)
