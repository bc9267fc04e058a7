"""Runs of real and tiny checkpoints over a few texts, for searches."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.finished_runs import finish
from varve import Job
from varve.output.run_output import Output

DECLARED = {"e": {"pool": "declared"}}


@pytest.fixture
def run_job(tmp_path):
    """(checkpoint, texts, ...) → the finished output of a job over these texts; `doc` and `text` are kept."""

    def run(folder: str, texts: Sequence, features: dict | None = None, name="run", **options) -> Output:
        dtype, max_rows = options.pop("dtype", "float32"), options.pop("rows_per_part", "auto")
        source = Path(tmp_path, f"{name}.parquet")
        docs = pa.array([f"d{number}" for number in range(len(texts))])
        pq.write_table(pa.table({"doc": docs, "text": pa.array(texts, pa.string())}), source)
        columns = {"text": "text", "keep": ["doc", "text"]}
        job = {
            "source": {"dataset": "parquet", "data_files": str(source), **columns, **options.pop("source", {})},
            "model": {"name": folder, **options},
            "features": features or DECLARED,
            "output": {"path": str(tmp_path / name), "dtype": dtype, "rows_per_part": max_rows},
        }
        finish(Job.parse(job))
        return Output.open(str(tmp_path / name))

    return run
