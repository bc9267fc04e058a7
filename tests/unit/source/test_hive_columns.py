"""Folders KEY=VALUE become columns that can be kept."""

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve import Job
from varve.config.source import Source
from varve.errors import JobError
from varve.planning.saved_plan import load_source, prepare, save_plan
from varve.source.dataset import Dataset
from varve.source.open_dataset import MIN_SHARD_ROWS, open_dataset
from varve.storage.object_store import Storage


def encode(kind: str, columns: dict) -> bytes:
    table = pa.table(columns)
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    if kind == "csv":
        lines = [",".join(table.column_names), *(",".join(map(str, row.values())) for row in table.to_pylist())]
        return "\n".join(lines).encode() + b"\n"
    return "\n".join(map(json.dumps, table.to_pylist())).encode()


@pytest.fixture
def opened(tmp_path):
    """({folder: columns}) → the dataset of one file in each folder."""

    def write_and_open(folders: dict[str, dict], kind="parquet", keep=("lang",), **source) -> Dataset:
        for folder, columns in folders.items():
            path = tmp_path / "root" / folder / f"part.{kind}"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode(kind, columns))
        spec = Source(dataset=kind, data_files=f"{tmp_path}/root/**/*.{kind}", text="text", keep=keep, **source)
        return open_dataset(spec)

    return write_and_open


def rows(dataset: Dataset) -> dict[str, tuple]:
    """text → kept values."""
    tables = [table for shard in range(dataset.num_shards) for table in dataset.read(shard)]
    assert all(table.schema == dataset.schema for table in tables)
    found = [row for table in tables for row in table.to_pylist()]
    return {row["text"]: tuple(value for name, value in row.items() if name != "text") for row in found}


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_values_of_folders_are_columns_of_each_format(opened, kind):
    folders = {"lang=de/year=2024": {"text": ["a", "b"], "n": [1, 2]}, "lang=fr/year=2023": {"text": ["c"], "n": [3]}}
    dataset = opened(folders, kind, keep=("year", "n", "lang"))
    assert dataset.schema.field("lang").type == pa.string()
    assert dataset.schema.field("year").type == pa.int64()
    assert rows(dataset) == {"a": (2024, 1, "de"), "b": (2024, 2, "de"), "c": (2023, 3, "fr")}


def test_values_and_keys_are_decoded(opened):
    folders = {
        "l%61ng=a%20b%2Fc": {"text": ["encoded"]},
        "lang=__HIVE_DEFAULT_PARTITION__": {"text": ["null"]},
        "lang=x=y": {"text": ["sign"]},
        "lang=": {"text": ["empty"]},
        "lang=de/lang=at": {"text": ["twice"]},
        "other=1": {"text": ["absent"]},
    }
    expected = {"encoded": "a b/c", "null": None, "sign": "x=y", "empty": "", "twice": "at", "absent": None}
    assert rows(opened(folders)) == {text: (value,) for text, value in expected.items()}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-20", "0"], [1, -20, 0]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None]),
        (["1", "007"], ["1", "007"]),
        (["1", "-0"], ["1", "-0"]),
        (["1", "x"], ["1", "x"]),
        (["1", "1.5"], ["1", "1.5"]),
        (["1", str(2**63)], ["1", str(2**63)]),
        (["1", str(2**63 - 1)], [1, 2**63 - 1]),
        (["1", "²"], ["1", "²"]),
        (["__HIVE_DEFAULT_PARTITION__"], [None]),
    ],
)
def test_column_is_of_integers_only_if_all_values_are(opened, values, expected):
    dataset = opened({f"lang={value}": {"text": [value]} for value in values})
    assert rows(dataset) == {text: (value,) for text, value in zip(values, expected, strict=True)}
    kind = pa.int64() if any(isinstance(value, int) for value in expected) else pa.string()
    assert dataset.schema.field("lang").type == kind


def test_type_depends_on_all_files_and_not_on_the_inspected_ones(opened):
    folders = {f"lang={number}": {"text": [str(number)]} for number in range(100, 140)}
    assert rows(opened({**folders, "lang=103x": {"text": ["last"]}}))["100"] == ("100",)


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_job_gives_a_column_its_type(opened, kind):
    folders = {"lang=2024-01-31": {"text": ["a"]}, "lang=__HIVE_DEFAULT_PARTITION__": {"text": ["b"]}}
    dataset = opened(folders, kind, types={"lang": "date32"})
    assert dataset.schema.field("lang").type == pa.date32()
    assert {text: value and str(value) for text, (value,) in rows(dataset).items()} == {"a": "2024-01-31", "b": None}


def test_value_that_is_not_of_the_type_of_the_job_is_refused_and_named(opened):
    with pytest.raises(JobError, match=r"source.types.lang: .* lang=de .* cannot be read as int64.*\{lang: string\}"):
        opened({"lang=de": {"text": ["a"]}}, types={"lang": "int64"})


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_column_of_the_files_has_priority(opened, kind):
    folders = {"lang=path": {"text": ["a"], "lang": ["file"]}, "lang=b": {"text": ["b"]}}
    assert rows(opened(folders, kind)) == {"a": ("file",), "b": (None,)}


def test_text_is_never_read_from_a_path(opened):
    with pytest.raises(JobError, match=r"source.text: there is no column 'text'"):
        opened({"text=a": {"body": ["x"]}}, keep=())


def test_column_that_no_path_has_is_refused(opened):
    with pytest.raises(JobError, match=r"source.keep: there is no column 'region' in parquet. Its columns: text"):
        opened({"lang=de": {"text": ["a"]}}, keep=("region",))


def test_name_of_the_file_is_no_folder(tmp_path):
    (tmp_path / "lang=de.parquet").write_bytes(encode("parquet", {"text": ["a"]}))
    with pytest.raises(JobError, match="there is no column 'lang'"):
        open_dataset(Source(dataset="parquet", data_files=f"{tmp_path}/*.parquet", text="text", keep=("lang",)))


def test_each_row_group_has_the_value_of_its_file(tmp_path):
    for lang, groups in (("de", 2), ("fr", 1)):
        path = tmp_path / f"lang={lang}/0.parquet"
        path.parent.mkdir()
        texts = [f"{lang}{row}" for row in range(groups * MIN_SHARD_ROWS)]
        pq.write_table(pa.table({"text": texts}), path, row_group_size=MIN_SHARD_ROWS)
    spec = Source(dataset="parquet", data_files=f"{tmp_path}/**/*.parquet", text="text", keep=("lang",))
    dataset = pickle.loads(pickle.dumps(open_dataset(spec)))
    langs = [{lang for table in dataset.read(shard) for lang in table["lang"].to_pylist()} for shard in range(3)]
    assert langs == [{"de"}, {"de"}, {"fr"}]
    rest = pa.concat_tables(dataset.read(1, first=MIN_SHARD_ROWS - 2))
    assert rest.select(["text", "lang"]).to_pylist() == [
        {"text": f"de{row}", "lang": "de"} for row in range(2 * MIN_SHARD_ROWS - 2, 2 * MIN_SHARD_ROWS)
    ]


def test_source_folder_has_the_columns_of_its_folders(tmp_path):
    (tmp_path / "docs/lang=de").mkdir(parents=True)
    (tmp_path / "docs/lang=de/0.parquet").write_bytes(encode("parquet", {"text": ["a"]}))
    assert rows(open_dataset(Source(dataset=str(tmp_path / "docs"), text="text", keep=("lang",)))) == {"a": ("de",)}


def test_saved_job_is_reopened_with_the_same_columns(opened, tiny, tmp_path):
    opened({"year=2024": {"text": ["a"]}, "year=2023": {"text": ["b"]}}, keep=("year",))
    files = f"{tmp_path}/root/**/*.parquet"
    source = {"dataset": "parquet", "data_files": files, "text": "text", "keep": ["year"]}
    model, path = {"name": tiny("bert"), "max_tokens": 16}, str(tmp_path / "out")
    job, storage = Job.parse({"source": source, "model": model, "output": {"path": path}}), Storage(path)
    planned = prepare(job, storage, device="cpu")
    save_plan(planned, storage)
    resumed = prepare(job, storage, device="cpu")
    assert (resumed.fingerprint, resumed.schema) == (planned.fingerprint, planned.schema)
    assert rows(resumed.dataset) == rows(load_source(storage)) == {"a": (2024,), "b": (2023,)}
    (tmp_path / "root/year=2024").rename(tmp_path / "root/year=2025")
    with pytest.raises(JobError, match=r"source file year=2025/part.parquet: absent"):
        prepare(job, storage, device="cpu")


def test_folder_of_all_files_that_is_renamed_is_another_source(opened, tmp_path):
    before = opened({"lang=de": {"text": ["a"]}})
    (tmp_path / "root/lang=de").rename(tmp_path / "root/lang=fr")
    spec = Source(dataset="parquet", data_files=f"{tmp_path}/root/**/*.parquet", text="text", keep=("lang",))
    assert open_dataset(spec).identity != before.identity
    assert before.names == ["lang=de/part.parquet"]
    unkept = open_dataset(spec.model_copy(update={"keep": ()}))
    assert unkept.names == ["part.parquet"]  # as in outputs from before such columns


def test_folders_of_a_store_are_listed(container):
    address = container("moto")
    for lang in ("de", "a%20b"):
        Storage(address).create(f"docs/lang={lang}/year=7/0.parquet", encode("parquet", {"text": [lang]}))
    keep, files = ("lang", "year"), f"{address}/docs/**/*.parquet"
    dataset = open_dataset(Source(dataset="parquet", data_files=files, text="text", keep=keep))
    assert rows(dataset) == {"de": ("de", 7), "a%20b": ("a b", 7)}
