"""Rows that crash their worker, in a whole run."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests.crashing_model import KILLING_TEXT
from varve.monitoring.run_history import read_histories
from varve.storage.object_store import Storage


def written(path) -> pa.Table:
    return pa.concat_tables(pq.read_table(part) for part in sorted((path / "data").glob("*.parquet")))


def test_row_that_crashes_its_worker_becomes_an_error_row(job, run, crashing_model, tmp_path):
    (tmp_path / "docs").mkdir()
    texts = [f"text number {row}" for row in range(30)]
    texts[21] = f"and {KILLING_TEXT} too"
    pq.write_table(pa.table({"text": texts}), tmp_path / "docs/0.parquet")
    manifest = run(job(tmp_path / "docs", model=crashing_model, output={"rows_per_part": 8}))
    table = written(tmp_path / "out")
    errors = table.filter(table["error"].is_valid())
    assert errors.select(["row", "error"]).to_pylist() == [{"row": 21, "error": "worker died"}]
    assert errors["embedding"].null_count == 1
    assert table["row"].to_pylist() == list(range(30))
    assert table["embedding"].null_count == 1
    assert manifest.counts["killers"] == 1
    assert manifest.counts["lost"] >= 3
    (history,) = read_histories(Storage(manifest.path))
    assert (sum(history.rows), sum(history.errors)) == (30, 1)
    lost = [event.text for event in history.events if event.kind == "part_lost"]
    assert len(lost) == manifest.counts["lost"]
    assert set(lost) == {"rows [16, 24) of shard 0 were started again: replica 0 died"}
    assert len(history.replicas[0].ready_s) > 3
    assert [span.start for span in history.parts if span.ended_s is None] == [16] * len(lost)
