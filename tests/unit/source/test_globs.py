"""Whether a source would read the files of an output, compared with what `datasets` then reads."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from varve.config.source import Source
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
