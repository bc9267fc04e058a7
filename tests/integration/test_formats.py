"""The same texts give the same vectors in every file format."""

import csv
import gzip
import json
import os
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.engine.ray_tasks import spread
from varve.errors import RunError
from varve.planning.saved_plan import prepare
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import Missing, missing
from varve.source.open_dataset import MIN_SHARD_ROWS, open_dataset
from varve.storage.object_store import Storage
from varve.workers.featurize import featurize

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
def encoder(tiny):
    return Encoder(Model(name=tiny("bert"), max_tokens=64), device="cpu")


@pytest.fixture(scope="module")
def seen():
    return {}


def same_as_in_other_formats(vectors, seen) -> bool:
    want = seen.setdefault("vectors", vectors)
    # Other formats cut shards elsewhere, so rows have other neighbours: float32's last bits may differ.
    return bool(np.abs(vectors - want).max() <= 2e-5)


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_and_kept_columns_are_unchanged_in_the_output(kind, job, tmp_path, encoder, seen):
    """Read by a Ray worker, as in a run, and encoded here, because only reading depends on the format."""
    from varve.cluster.connection import start_ray

    write, below, keep = WRITERS[kind]
    folder = tmp_path / "docs"
    folder.mkdir()
    write(folder)
    plan = prepare(job(folder / below, keep=keep), Storage(str(tmp_path / "out")), device="cpu")
    start_ray(plan.job.compute)

    def read(shard: int) -> list[tuple[int, int, pa.Table]]:
        return [(shard, *part) for part in dataset.read_parts(shard, 30, missing((), 30))]

    dataset = plan.dataset
    done = []
    for shard, first, table in chain.from_iterable(spread(read, range(dataset.num_shards))):
        blocks = tokenize_blocks(encoder.tokenizer, table, ["text"], len(table))
        done += featurize(encoder, table, blocks, schema=plan.schema, shard=shard, start=first, pairs=False)[:1]
    output = pa.concat_tables(done).sort_by([("shard", "ascending"), ("row", "ascending")])
    assert output["error"].null_count == len(output) == len(TEXTS)
    assert same_as_in_other_formats(np.stack(output["embedding"].to_numpy()), seen)
    check_kept(output, keep)


def check_kept(output: pa.Table, keep) -> None:
    for name in keep:
        assert output[name].to_pylist() == TABLE[name].to_pylist()
    if "id" in keep:
        assert output.schema.field("id").type == pa.int64()
    if "meta" in keep:
        assert output.schema.field("meta").type.field("score").type == pa.float64()


@pytest.mark.parametrize("kind", ["jsonl.gz", "save_to_disk of splits"])
def test_run_over_a_format_gives_the_vectors_of_the_others(kind, job, run, read, tmp_path, seen):
    write, below, keep = WRITERS[kind]
    folder = tmp_path / "docs"
    folder.mkdir()
    write(folder)
    manifest = run(job(folder / below, keep=keep, output={"rows_per_part": 30}))
    assert manifest.num_rows == len(TEXTS)
    assert manifest.num_errors == 0
    output = read(tmp_path / "out")
    assert same_as_in_other_formats(np.stack(output["embedding"].to_numpy()), seen)
    check_kept(output, keep)


def test_builder_over_globs_reads_the_files_that_match(job, tmp_path):
    write_parquet(tmp_path)
    source = {"data_files": [str(tmp_path / "0*.parquet")]}
    dataset = open_dataset(job("parquet", source=source).source)
    assert [text for table in dataset.read(0) for text in table["text"].to_pylist()] == TEXTS[:70]
    assert dataset.num_shards == 1


@pytest.mark.parametrize("first", [0, 1, 99, 100, 101, 250, 999, 1000])
def test_shard_is_read_from_any_row_on(job, tmp_path, first):
    (tmp_path / "docs").mkdir()
    pq.write_table(
        pa.table({"text": [str(row) for row in range(1000)]}), tmp_path / "docs/0.parquet", row_group_size=100
    )
    dataset = open_dataset(job(tmp_path / "docs").source)
    texts = [text for table in dataset.read(0, first) for text in table["text"].to_pylist()]
    assert texts == [str(row) for row in range(first, 1000)]


def test_rows_before_the_first_missing_one_are_not_fetched(job, tmp_path):
    (tmp_path / "docs").mkdir()
    path = tmp_path / "docs/0.parquet"
    pq.write_table(pa.table({"text": [str(row) for row in range(1000)]}), path, row_group_size=100)
    dataset = open_dataset(job(tmp_path / "docs").source)
    content, status = bytearray(path.read_bytes()), path.stat()
    content[4:500] = bytes(496)  # reading the first row group now fails
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError):
        list(dataset.read(0))
    parts = list(dataset.read_parts(0, 150, Missing(frozenset({600}), end_known=True, tail=1000)))
    assert [(start, table["text"].to_pylist()) for start, table in parts] == [(600, [str(r) for r in range(600, 750)])]


def test_replaced_file_yields_no_more_rows(job, tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": ["x"] * 1000}), tmp_path / "docs/0.parquet", row_group_size=100)
    parts = open_dataset(job(tmp_path / "docs").source).read_parts(0, 100, missing((), 100))
    start, _ = next(parts)
    assert start == 0
    os.utime(tmp_path / "docs/0.parquet", (1, 1))
    with pytest.raises(RunError, match=r"0\.parquet\) has changed since the run was planned"):
        next(parts)


def test_large_row_groups_are_shards(job, tmp_path):
    (tmp_path / "big").mkdir()
    table = pa.table({"text": ["x"] * (2 * MIN_SHARD_ROWS + 5)})
    pq.write_table(table, tmp_path / "big/one.parquet", row_group_size=MIN_SHARD_ROWS)
    dataset = open_dataset(job(tmp_path / "big").source)
    assert dataset.shard_rows == (MIN_SHARD_ROWS, MIN_SHARD_ROWS, 5)
    assert sum(len(piece) for piece in dataset.read(2)) == 5
