"""Runs over an existing output: complete, with missing parts, of another job, or with wrong content."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from tests.servers.processes import descendants
from tests.waiting import wait_until
from varve import JobError, RunError
from varve.cli.status import read_status
from varve.storage.object_store import Storage

FEATURES = {
    "e": {"pool": "mean", "normalize": True},
    "t": {"pool": "tokens"},
    "a": {"pool": "attentions", "layers": 1},
    "c": {"pool": "cls", "layers": [0, 3]},
}


@pytest.fixture(scope="module")
def docs(write_shards, tmp_path_factory):
    tables = [pa.table({"text": [f"text {row} of {shard}" for row in range(150)]}) for shard in range(2)]
    return write_shards(tmp_path_factory.mktemp("resume") / "docs", tables)


@pytest.fixture(scope="module")
def made(docs, job_to, run):
    """(dtype) → finished output and manifest, one job each."""
    done = {}

    def make(dtype: str):
        output = docs.parent / dtype
        if dtype not in done:
            done[dtype] = run(job_to(output, docs, features=FEATURES, output={"dtype": dtype}))
        return output, done[dtype]

    return make


@pytest.fixture
def job(job, docs):
    """The job of the finished output, with changes of a test."""

    def make(**changes):
        return job(docs, **({"features": FEATURES} | changes))

    return make


@pytest.fixture
def finished(made, tmp_path):
    """A copy of the float32 output at the path of this test's job."""
    output, _ = made("float32")
    shutil.copytree(output, tmp_path / "out")
    return tmp_path / "out"


def unpublish(output, *parts: str) -> None:
    """Simulate a run that was killed before it wrote these parts and the manifest."""
    (output / "_varve/manifest.json").unlink()
    for part in parts:
        (output / "data" / part).unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_output_is_read_by_every_reader_as_plain_lists(dtype, made, read, tmp_path):
    import duckdb
    import polars as pl
    from datasets import load_dataset

    output, manifest = made(dtype)
    assert manifest.canary["passed"]
    assert manifest.canary["rows"] >= 8
    files = str(output / "data/*.parquet")
    width = 4 if dtype == "binary" else 32
    table = read(output)
    assert table.schema.field("e").type.list_size == width
    assert not any(isinstance(field.type, pa.ExtensionType) for field in table.schema)
    first = table["e"][0].as_py()
    frame = table.to_pandas()
    assert frame["e"][0].shape == (width,)
    by_polars = pl.read_parquet(files).sort("shard", "row")
    assert by_polars["e"].to_numpy().shape == (300, width)
    assert by_polars["e"][0].to_list() == first
    by_duckdb = duckdb.sql(f"SELECT e, len(t), c_00 FROM '{files}' ORDER BY shard, row").fetchall()
    assert len(by_duckdb) == 300
    assert list(by_duckdb[0][0]) == first
    by_datasets = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert by_datasets.features["e"].length == width
    assert by_datasets[0]["e"] == first


def test_finished_job_does_nothing_the_second_time(job, run, made, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run(job()) == made("float32")[1]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_missing_parts_are_written_again_bit_for_bit(job, run, finished):
    before = {path.name: pq.read_table(path) for path in (finished / "data").iterdir()}
    unpublish(finished, *sorted(before)[::2])
    assert read_status(Storage(str(finished)))["state"] == "partial"
    manifest = run(job())
    assert manifest.num_rows == 300
    assert {path.name: pq.read_table(path) for path in (finished / "data").iterdir()} == before


def test_changed_job_is_rejected_with_the_changed_field(job, run, finished):
    with pytest.raises(JobError) as error:
        run(job(model={"max_tokens": 32}, features=FEATURES | {"e": {"pool": "cls"}}))
    assert "model.max_tokens: 64 → 32" in str(error.value)
    assert 'features.e.pool: "mean" → "cls"' in str(error.value)


def test_changed_source_is_rejected(job, run, docs, finished, tmp_path):
    kept = (docs / "1.parquet").rename(tmp_path / "kept")
    pq.write_table(pa.table({"text": ["another text"] * 7}), docs / "1.parquet")
    try:
        with pytest.raises(JobError, match=r"source file 1\.parquet"):
            run(job())
    finally:
        kept.rename(docs / "1.parquet")


def test_changed_config_of_the_model_is_rejected(job, run, tiny, finished):
    config = Path(tiny("bert"), "config.json")
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {"layer_norm_eps": 1e-6}))
    try:
        with pytest.raises(JobError, match=r"belongs to another job\. Changed:\n  the model's config\.json"):
            run(job())
    finally:
        config.write_text(kept)


def test_older_output_without_a_config_hash_can_be_resumed(job, run, finished):
    path = finished / "_varve/job.json"
    stored = json.loads(path.read_text())
    del stored["resolved"]["config_sha256"]
    path.write_text(json.dumps(stored))
    assert run(job()).num_rows == 300


def test_parts_without_job_json_are_rejected(job, run, finished):
    unpublish(finished)
    (finished / "_varve/job.json").unlink()
    with pytest.raises(JobError, match="holds parts, but not the job that wrote them"):
        run(job(features={"e": {"pool": "cls"}}))


def test_part_of_another_job_prevents_publishing(job, run, made, finished):
    other, _ = made("float16")
    name = "data/part-00000-000000000000-000000000100.parquet"
    (finished / name).write_bytes((other / name).read_bytes())
    unpublish(finished)
    with pytest.raises(RunError, match="data/part-00000"):
        run(job())


def test_wrong_stored_vector_prevents_publishing(job, run, finished):
    """The canary reads stored vectors, so it finds a part with wrong ones before the manifest is written."""
    from varve.output.part_file import part_name, write_part
    from varve.planning.saved_plan import prepare
    from varve.ranges import Range

    rows = Range(0, 0, 100)
    table = pq.read_table(finished / part_name(rows))
    shifted = pa.FixedSizeListArray.from_arrays(
        pa.array(np.stack(table["e"].to_numpy()).ravel() + np.float32(0.01)), type=table["e"].type
    )
    wrong = table.set_column(table.column_names.index("e"), table.schema.field("e"), shifted)
    unpublish(finished, part_name(rows).removeprefix("data/"))
    storage = Storage(str(finished))
    write_part(storage, rows, wrong, prepare(job(), storage, device="cpu").fingerprint)
    with pytest.raises(RunError, match=r"not published(.|\n)*e of shard 0"):
        run(job())
    assert not (finished / "_varve/manifest.json").exists()


def test_two_replicas_write_the_same_rows_as_one(job, run, made, read, tmp_path):
    output, _ = made("float32")
    manifest = run(job(compute={"replicas": 2}))
    assert manifest.num_rows == 300
    assert manifest.encoder["threads"] >= 1
    assert read(tmp_path / "out").select(["shard", "row"]).equals(read(output).select(["shard", "row"]))


def test_run_restores_the_options_of_a_ray_program(made):
    made("float32")
    assert DataContext.get_current().target_max_block_size == DataContext().target_max_block_size


def test_finished_run_leaves_no_processes_behind(made):
    made("float32")
    ours = (b"ray::RunCounters", b"ray::MapWorker")
    wait_until(lambda: not [t for t in descendants().values() if t.startswith(ours)], "its processes have ended")
