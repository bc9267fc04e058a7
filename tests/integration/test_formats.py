"""The same texts give the same vectors, whatever file they lie in."""

import csv
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from pipeline.errors import RunError

TEXTS = [f"text number {number}, and more of it" for number in range(120)] + [
    "null",
    "NA",
    "12",
    "",
    'with "quotes", commas',
    "emoji 🙂 naïve",
]
TABLE = pa.table(
    {
        "unused": ["x" * 100] * len(TEXTS),
        "id": pa.array(range(len(TEXTS)), pa.int64()),
        "text": TEXTS,
        "meta": [{"tags": [f"t{number}"], "score": number / 2} for number in range(len(TEXTS))],
    }
)


def write_parquet(folder):
    for shard, first in enumerate((0, 70)):
        pq.write_table(TABLE.slice(first, 70), folder / f"{shard}.parquet", row_group_size=16)


def write_jsonl_gz(folder):
    for shard, first in enumerate((0, 70)):
        with gzip.open(folder / f"{shard}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in TABLE.slice(first, 70).to_pylist())


def write_csv(folder):
    for shard, first in enumerate((0, 70)):
        with (folder / f"{shard}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "unused"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(TABLE.slice(first, 70).to_pylist())


def write_text(folder):
    for shard, first in enumerate((0, 70)):
        (folder / f"{shard}.txt").write_text("".join(f"{text}\n" for text in TEXTS[first : first + 70]))


def write_disk(folder):
    Dataset(TABLE).save_to_disk(folder / "saved", num_shards=2)


def write_disk_of_splits(folder):
    DatasetDict({"train": Dataset(TABLE), "test": Dataset(TABLE.slice(0, 3))}).save_to_disk(folder / "saved")


WRITERS = {
    "parquet": (write_parquet, "", ["id", "meta"]),
    "jsonl.gz": (write_jsonl_gz, "", ["id", "meta"]),
    "csv": (write_csv, "", ["id"]),
    "text": (write_text, "", []),
    "save_to_disk": (write_disk, "saved", ["id", "meta"]),
    "save_to_disk of splits": (write_disk_of_splits, "saved", ["id", "meta"]),
}


@pytest.fixture(scope="module")
def seen():
    return {}


@pytest.mark.parametrize("kind", WRITERS)
def test_same_texts_give_same_vectors(kind, job, run, tmp_path, seen):
    write, below, keep = WRITERS[kind]
    folder = tmp_path / "docs"
    folder.mkdir()
    write(folder)
    manifest = run(job(folder / below, keep=keep, output={"rows_per_part": 30}))
    assert manifest.num_rows == len(TEXTS)
    assert manifest.num_errors == 0
    output = ds.dataset(tmp_path / "out/data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])
    vectors = np.stack(output["embedding"].to_numpy())
    want = seen.setdefault("vectors", vectors)
    # Other formats cut shards elsewhere, so rows have other neighbours: float32's last bits may differ.
    assert np.abs(vectors - want).max() <= 2e-5
    for name in keep:
        assert output[name].to_pylist() == TABLE[name].to_pylist()
    if "id" in keep:
        assert output.schema.field("id").type == pa.int64()
    if "meta" in keep:
        assert output.schema.field("meta").type.field("score").type == pa.float64()


def test_builder_over_globs_reads_the_files_that_match(job, run, tmp_path):
    (tmp_path / "a").mkdir()
    write_parquet(tmp_path / "a")
    source = {"data_files": [str(tmp_path / "a/0*.parquet")]}
    assert run(job("parquet", source=source)).num_rows == 70


@pytest.mark.parametrize("first", [0, 1, 99, 100, 101, 250, 999, 1000])
def test_shard_is_read_from_any_row_on_without_its_row_groups_before(job, tmp_path, first, monkeypatch):
    from pipeline.source.opening import open_dataset

    (tmp_path / "docs").mkdir()
    pq.write_table(
        pa.table({"text": [str(row) for row in range(1000)]}), tmp_path / "docs/0.parquet", row_group_size=100
    )
    dataset = open_dataset(job(tmp_path / "docs").source)
    texts = [text for table in dataset.read(0, first) for text in table["text"].to_pylist()]
    assert texts == [str(row) for row in range(first, 1000)]


def test_rows_before_the_first_missing_one_are_not_fetched(job, tmp_path):
    from pipeline.ranges import Missing
    from pipeline.source.opening import open_dataset

    (tmp_path / "docs").mkdir()
    path = tmp_path / "docs/0.parquet"
    pq.write_table(pa.table({"text": [str(row) for row in range(1000)]}), path, row_group_size=100)
    dataset = open_dataset(job(tmp_path / "docs").source)
    content, status = bytearray(path.read_bytes()), path.stat()
    content[4:500] = bytes(496)  # whoever reads the first row group now fails
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError):
        list(dataset.read(0))
    parts = list(dataset.read_parts(0, 150, Missing(frozenset({600}), end_known=True, tail=1000)))
    assert [(start, table["text"].to_pylist()) for start, table in parts] == [(600, [str(r) for r in range(600, 750)])]


def test_large_row_groups_are_shards_of_their_own(job, tmp_path):
    from pipeline.source.opening import MIN_SHARD_ROWS, open_dataset

    (tmp_path / "big").mkdir()
    table = pa.table({"text": ["x"] * (2 * MIN_SHARD_ROWS + 5)})
    pq.write_table(table, tmp_path / "big/one.parquet", row_group_size=MIN_SHARD_ROWS)
    dataset = open_dataset(job(tmp_path / "big").source)
    assert dataset.shard_rows == (MIN_SHARD_ROWS, MIN_SHARD_ROWS, 5)
    assert sum(len(piece) for piece in dataset.read(2)) == 5


def test_source_on_s3_is_read_and_output_on_s3_is_published(job, tmp_path, bucket):
    import boto3

    from pipeline.manifest import read_manifest
    from pipeline.storage.objects import Storage

    write_parquet(tmp_path)
    client = boto3.client("s3")
    for shard in (0, 1):
        client.upload_file(str(tmp_path / f"{shard}.parquet"), bucket, f"docs/{shard}.parquet")
    output = f"s3://{bucket}/features"
    wanted = job("parquet", source={"data_files": f"s3://{bucket}/docs/*.parquet"}, output={"path": output})
    (tmp_path / "job.yaml").write_text(json.dumps(wanted.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.embed", str(tmp_path / "job.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == len(TEXTS)
    manifest = read_manifest(Storage(output))
    assert manifest is not None
    assert len(manifest.parts) == 2
    stored = [
        client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in client.list_objects_v2(Bucket=bucket)["Contents"]
    ]
    assert not any(b"SKTEST-not-to-be-seen" in content for content in stored)
    assert "SKTEST-not-to-be-seen" not in done.stdout + done.stderr
