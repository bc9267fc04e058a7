"""Fixtures for jobs on a local Ray, which the first run starts and all tests of a process share."""

import os
from functools import partial

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from varve import Job, embed

os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(scope="session")
def job_to(tiny):
    """(output, dataset, keys of the job file) → a job with a tiny BERT and small parts."""

    def make(output, dataset, /, *, text="text", keep=(), features=None, **sections) -> Job:
        content = {
            "source": {"dataset": str(dataset), "text": text, "keep": list(keep), **sections.pop("source", {})},
            "model": {"name": tiny("bert"), "max_tokens": 64, **sections.pop("model", {})},
            "output": {"path": str(output), "rows_per_part": 100, **sections.pop("output", {})},
            **sections,
        }
        return Job.parse(content | ({"features": features} if features else {}))

    return make


@pytest.fixture
def job(job_to, tmp_path):
    """`job_to` with an output in the test's own folder."""
    return partial(job_to, tmp_path / "out")


@pytest.fixture(scope="session")
def run():
    return embed


@pytest.fixture(scope="session")
def write_shards():
    def write(folder, tables):
        folder.mkdir()
        for shard, table in enumerate(tables):
            pq.write_table(table, folder / f"{shard}.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def read():
    """(path) → the rows of an output, in order."""

    def table(path) -> pa.Table:
        return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])

    return table
