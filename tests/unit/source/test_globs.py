"""Whether a source would read the files of an output, compared with what `datasets` then reads."""

import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from varve.config.source import Source
from varve.errors import JobError
from varve.source.globs import find_matching_glob
from varve.source.open_dataset import open_dataset

WRITTEN = ("data/part-00000-000000000000-000000000001.parquet", "_varve/job.json")


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """A folder `docs` in the working directory, with a hidden file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs/.before/_varve").mkdir(parents=True)
    (tmp_path / "docs/.before/_varve/0.json").write_text('{"text": "hidden"}\n')
    return tmp_path / "docs"


def read_after(output, spec: Source) -> list[str]:
    """The files of the source that belong to an output, once that output exists."""
    part, job = (output / name for name in WRITTEN)
    for path in (part, job):
        path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": ["a part's"]}), part)
    job.write_text(json.dumps({"text": "a job's"}) + "\n")
    return [file for file in open_dataset(spec).files if file in (str(part), str(job))]


@pytest.mark.parametrize(
    ("output", "source", "is_found"),
    [
        ("docs/out", {"dataset": "docs"}, True),
        ("docs/.out", {"dataset": "docs"}, False),
        ("docs/__out", {"dataset": "docs"}, False),
        ("other", {"dataset": "docs"}, False),
        ("docs/out", {"dataset": "docs", "data_files": "*.jsonl"}, False),
        ("docs/out", {"dataset": "docs", "data_files": "**/*.json*"}, True),
        ("docs/out", {"dataset": "json", "data_files": "docs/*.jsonl"}, False),
        ("docs/out", {"dataset": "json", "data_files": ("docs/0.jsonl", "docs/**/*.json")}, True),
        ("docs", {"dataset": "json", "data_files": "docs/*.jsonl"}, False),
        ("docs", {"dataset": "json", "data_files": "docs/**/*.json*"}, True),
        ("docs/.out", {"dataset": "json", "data_files": "docs/.*/_varve/*.json"}, True),
    ],
)
def test_glob_matches_an_output_that_datasets_would_read(output, source, is_found, docs):
    (docs / "0.jsonl").write_text('{"text": "one"}\n')
    spec, place = Source(text="text", **source), docs.parent / output
    assert (find_matching_glob(spec, [str(place / name) for name in WRITTEN]) is not None) == is_found
    assert bool(read_after(place, spec)) == is_found


def test_saved_dataset_has_only_its_own_files(docs):
    Dataset.from_dict({"text": ["one"]}).save_to_disk(docs)
    spec = Source(dataset=str(docs), text="text")
    assert find_matching_glob(spec, [str(docs / "out" / name) for name in WRITTEN]) is None
    assert read_after(docs / "out", spec) == []


@pytest.mark.parametrize("files", ["s3://bucket/**", "docs/**.jsonl"])
def test_glob_of_a_store_or_an_invalid_one_matches_nothing(files, docs):
    spec = Source(dataset="json", data_files=files, text="text")
    assert find_matching_glob(spec, [str(docs / "out" / name) for name in WRITTEN]) is None


ODD_NAMES = (
    "a[x].parquet",
    "a*.parquet",
    "a?.parquet",
    "a{b}.parquet",
    "a#1 %20'\"ü.parquet",
    "ax.parquet",
    "ay.parquet",
)
GLOBS = {"a[xy].parquet": ["ax.parquet", "ay.parquet"], "a[!x]*.parquet": ["a#1 %20'\"ü.parquet", "a{b}.parquet"]}
ODD_FOLDER = "we ird's #1 %20 [x]*?{y} ü"


@pytest.fixture(params=["local", "memory"])
def odd(request, tmp_path):
    """A folder, local or in a store, with an odd name, whose files have odd names; each file holds its name."""
    root = f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path)
    for name in ODD_NAMES:
        with fsspec.open(f"{root}/{ODD_FOLDER}/sub[1]/{name}", "wb", auto_mkdir=True) as file:
            pq.write_table(pa.table({"text": [name]}), file)
    return f"{root}/{ODD_FOLDER}"


def texts(dataset) -> list[str]:
    tables = [table for shard in range(dataset.num_shards) for table in dataset.read(shard)]
    return [text for table in tables for text in table["text"].to_pylist()]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_path_that_exists_is_read_by_its_name(odd, name):
    spec = Source(dataset="parquet", data_files=f"{odd}/sub[1]/{name}", text="text")
    assert texts(open_dataset(spec)) == [name]
    assert find_matching_glob(spec, [f"{odd}/sub[1]/{name}"]) == (spec.data_files if odd.startswith("/") else None)


@pytest.mark.parametrize("glob", [*GLOBS, "*.parquet", "a?.parque[t]"])
def test_globs_in_a_folder_of_an_odd_name_match(odd, glob):
    found = set(texts(open_dataset(Source(dataset="parquet", data_files=f"{odd}/sub[1]/{glob}", text="text"))))
    assert found >= set(GLOBS.get(glob, ["ax.parquet"]))
    assert found == {name for name in ODD_NAMES if fnmatchcase(name, glob)}


@pytest.mark.parametrize("odd", ["local"], indirect=True)
@pytest.mark.parametrize("card", ["", "---\nconfigs:\n- config_name: default\n  data_files: 'sub*/*.parquet'\n---\n"])
def test_source_folder_of_an_odd_name_is_read(odd, card):
    if card:
        Path(odd, "README.md").write_text(card)
    assert sorted(texts(open_dataset(Source(dataset=odd, text="text")))) == sorted(ODD_NAMES)
    uri = f"file://{quote(odd)}"
    assert sorted(texts(open_dataset(Source(dataset=uri, text="text")))) == sorted(ODD_NAMES)
    for files in ("sub[1]/a[x].parquet", ("sub[1]/a*.parquet",)):
        assert len(texts(open_dataset(Source(dataset=odd, data_files=files, text="text")))) == 1
    assert find_matching_glob(Source(dataset=odd, text="text"), [f"{odd}/out/data/0.parquet"])


@pytest.mark.parametrize("start", ["file://", "file://localhost", "file:"])
def test_file_uri_is_decoded(tmp_path, start):
    (tmp_path / "a b%20").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a b%20/0.parquet")
    for name in ("a%20b%2520/0.parquet", "a b%2520/*.parquet", "%61%20b%2520/%30.parquet"):
        spec = Source(dataset="parquet", data_files=f"{start}{tmp_path}/{name}", text="text")
        assert texts(open_dataset(spec)) == ["a"]
        assert spec.locations[0].startswith(f"{tmp_path}/a b%20/")


@pytest.fixture
def loop(tmp_path):
    """A folder with links that lead to themselves, next to a file."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "x.parquet").symlink_to("x.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "0.parquet")
    return tmp_path


@pytest.mark.parametrize(("dataset", "data_files"), [("parquet", "*.parquet"), ("parquet", "**"), (".", None)])
def test_links_to_themselves_are_skipped(loop, monkeypatch, dataset, data_files):
    monkeypatch.chdir(loop)
    spec = Source(dataset=dataset, data_files=data_files, text="text")
    assert texts(open_dataset(spec)) == ["a"]
    assert find_matching_glob(spec, ["a/x/data/0.parquet"]) in {"./**", "**", None}


ODD_FILES = [
    ("x.parquet", "is not a regular file"),
    ("a", "is not a regular file"),
    ("a/0.parquet", "Unable to find"),
    ("a/*.parquet", "no file matches"),
    ("pipe.parquet", "is not a regular file"),
    ("/dev/zero", "is not a regular file"),
    ("folder.parquet", r"is a folder\. Name its files, for example \S+/folder\.parquet/\*\.parquet"),
]


@pytest.mark.parametrize(("files", "message"), ODD_FILES)
def test_what_is_not_a_file_is_refused(loop, files, message):
    os.mkfifo(loop / "pipe.parquet")
    (loop / "folder.parquet").mkdir()
    with pytest.raises(JobError, match=rf"{re.escape(files)}.*{message}|{message} \S+/{re.escape(files)}$"):
        open_dataset(Source(dataset="parquet", data_files=str(loop / files), text="text"))
    assert texts(open_dataset(Source(dataset="parquet", data_files=str(loop / "*.parquet"), text="text"))) == ["a"]


def test_source_folder_that_links_to_itself_is_refused(loop, monkeypatch):
    monkeypatch.chdir(loop)
    for dataset in ("a", str(loop / "a")):
        with pytest.raises(JobError, match=rf"source\.dataset: {dataset}: no such folder"):
            open_dataset(Source(dataset=dataset, text="text"))


@pytest.mark.parametrize("state", ['{"mode": 1}', "[1]", "words", '{"_data_files": [{}]}', None])
def test_state_file_of_another_program_does_not_make_a_saved_dataset(docs, state):
    path = docs / "state.json"
    if state is None:
        os.mkfifo(path)
    else:
        path.write_text(state)
    (docs / "0.csv").write_text("text\na\n")
    spec = Source(dataset=str(docs), data_files="*.csv", text="text")
    assert texts(open_dataset(spec)) == ["a"]
    assert find_matching_glob(spec, [str(docs / "0.csv")])


def test_saved_dataset_that_names_a_file_outside_of_it_is_refused(docs):
    Dataset.from_dict({"text": ["private"]}).save_to_disk(docs.parent / "private")
    Dataset.from_dict({"text": ["one"]}).save_to_disk(docs)
    state = (docs / "state.json").read_text()
    (docs / "state.json").write_text(state.replace('"filename": "', '"filename": "../private/'))
    with pytest.raises(JobError, match=r"state\.json names '\.\./private/.*expected the name of a file in this folder"):
        open_dataset(Source(dataset=str(docs), text="text"))


@pytest.mark.parametrize("names", ["../private.csv", "{root}/private.csv", "../p*.csv", "x/../../private.csv"])
def test_card_that_names_a_file_outside_of_its_folder_is_refused(docs, names):
    (docs.parent / "private.csv").write_text("text\nprivate\n")
    (docs / "x").mkdir()
    (docs / "0.csv").write_text("text\na\n")
    files = names.format(root=docs.parent)
    (docs / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    with pytest.raises(
        JobError, match=r"the dataset card in \S+/docs names \S+private\.csv, which is not in this folder"
    ):
        open_dataset(Source(dataset=str(docs), text="text"))
    assert texts(open_dataset(Source(dataset=str(docs), data_files="0.csv", text="text"))) == ["a"]
    assert texts(open_dataset(Source(dataset=str(docs), data_files="../private.csv", text="text"))) == ["private"]


def test_files_and_folders_behind_links_are_read(docs):
    (docs.parent / "elsewhere").mkdir()
    (docs.parent / "elsewhere/0.csv").write_text("text\na\n")
    (docs / "0.csv").symlink_to("../elsewhere/0.csv")
    Dataset.from_dict({"text": ["b"]}).save_to_disk(docs.parent / "saved")
    for link, target in (("docs_link", "docs"), ("saved_link", "saved")):
        (docs.parent / link).symlink_to(target)
    for dataset, text in {"docs": "a", "docs_link": "a", "docs/../docs_link": "a", "saved_link": "b"}.items():
        assert texts(open_dataset(Source(dataset=dataset, text="text"))) == [text]
        assert texts(open_dataset(Source(dataset=str(docs.parent / dataset), text="text"))) == [text]
