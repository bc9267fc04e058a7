"""Rows that crash their worker, in a whole run."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests.crashing_model import KILLING_TEXT


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
