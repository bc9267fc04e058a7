"""Sample rows from which part sizes are planned: rows with a text, in whichever shard they are."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.config.job import Job
from varve.config.source import Source
from varve.planning.saved_plan import prepare
from varve.source.open_dataset import open_dataset
from varve.source.sampling import rows_with_text, some_shards
from varve.storage.object_store import Storage

LONG = ["word " * 300] * 700


@pytest.fixture
def docs(tmp_path):
    """(texts of each file) → a folder of them."""

    folder = tmp_path / "docs"
    folder.mkdir()

    def write(*shards):
        for shard, texts in enumerate(shards):
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / f"{shard:04d}.parquet")
        return str(folder)

    return write


def sample(folder: str, rows: int) -> list[str]:
    return rows_with_text(open_dataset(Source(dataset=folder, text="text")), ["text"], rows)["text"].to_pylist()


def test_first_rows_with_a_text_are_sampled(docs):
    assert sample(docs([str(row) for row in range(3000)], ["other"]), 512) == [str(row) for row in range(512)]


@pytest.mark.parametrize("before", [[], [None] * 5, [None] * 3000])
def test_rows_without_a_text_are_skipped(docs, before):
    assert sample(docs([*before, "own"], ["other"] * 9), 4) == ["own", "other", "other", "other"]


def test_few_of_many_small_files_are_read(docs):
    assert sample(docs(*([str(shard)] for shard in range(100))), 512) == ["0", "33", "66", "99"]


def test_source_without_a_text_gives_no_rows(docs):
    assert sample(docs([None] * 3, []), 512) == []


@pytest.mark.parametrize(
    ("shards", "some"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4])]
)
def test_some_shards_are_spread_over_all(shards, some):
    assert some_shards(shards) == some


@pytest.mark.parametrize("first", [[], [None] * 3000, ["a"] * 2])
def test_blocks_and_parts_fit_texts_that_the_first_file_lacks(docs, minilm, first, tmp_path):
    def sizes(*shards) -> tuple[int, int]:
        source = {"dataset": docs(*shards), "text": "text"}
        content = {"source": source, "model": {"name": minilm}, "features": {"t": {"pool": "tokens"}}}
        job = Job.parse({**content, "output": {"path": str(tmp_path / "out")}})
        resolved = prepare(job, Storage(job.output.path), device="cpu").resolved
        return resolved.block_rows, resolved.rows_per_part

    with_it, without_it = sizes(first, LONG), sizes(LONG, LONG)
    assert with_it == pytest.approx(without_it, rel=0.02)
