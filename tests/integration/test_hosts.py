"""One job over several hosts, one of which is cut off in the midst of it and comes back."""

import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from tests.servers.hosts import hosts, namespaces_missing

PATIENCE_S = 240


def rows(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])


def wait_for_parts(output: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(list(output.glob("data/*.parquet"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # polls with a deadline


def test_host_cut_off_in_the_midst_of_a_run_costs_no_row(job, run, tmp_path, minilm):
    if missing := namespaces_missing():
        warnings.warn(f"hosts share one address: {missing}", stacklevel=1)
    (tmp_path / "docs").mkdir()
    for shard in range(3):
        texts = [f"row {row} of shard {shard}: " + "some words of a text " * (row % 30) for row in range(400)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"docs/{shard}.parquet")
    wanted = job(tmp_path / "docs", model={"name": minilm}, output={"rows_per_part": 20})
    content = wanted.model_dump(mode="json")
    content["output"]["path"] = str(tmp_path / "there")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    with hosts(3) as cluster:
        submit = [sys.executable, "-m", "jobs.submit", str(tmp_path / "job.yaml"), "--to", cluster.address]
        on_head = {"env": cluster.environment, "capture_output": True, "text": True}
        left = subprocess.run(cluster.on(0, [*submit, "--no-wait"]), timeout=PATIENCE_S, check=False, **on_head)
        assert left.returncode == 0, left.stderr
        wait_for_parts(tmp_path / "there", 6)
        cluster.cut_off(2)
        wait_for_parts(tmp_path / "there", 12)
        cluster.bring_back(2)
        followed = subprocess.run(cluster.on(0, submit), timeout=PATIENCE_S, check=False, **on_head)
        assert followed.returncode == 0, followed.stderr
    run(wanted)
    there, here = rows(tmp_path / "there"), rows(tmp_path / "out")
    assert there.num_rows == 1200
    assert there.equals(here)
