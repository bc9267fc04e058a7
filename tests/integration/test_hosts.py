"""One job over several hosts, one of which is cut off in the midst of it and comes back."""

import subprocess
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from tests.reference_run import rows_of
from tests.servers.hosts import hosts, namespaces_missing
from tests.waiting import PATIENCE_S, wait_until


def rows(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])


def wait_for_parts(output: Path, count: int) -> None:
    wait_until(lambda: len(list(output.glob("data/*.parquet"))) >= count, f"{count} parts")


def test_host_cut_off_in_the_midst_of_a_run_costs_no_row(job, tmp_path, minilm):
    if missing := namespaces_missing():
        warnings.warn(f"hosts share one address: {missing}", stacklevel=1)
    (tmp_path / "docs").mkdir()
    for shard in range(2):
        texts = [f"row {row} of shard {shard}: " + "some words of a text " * (row % 30) for row in range(240)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"docs/{shard}.parquet")
    wanted = job(tmp_path / "docs", model={"name": minilm}, output={"rows_per_part": 20})
    content = wanted.model_dump(mode="json")
    content["output"]["path"] = str(tmp_path / "there")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    with hosts(2) as cluster:
        known = cluster.environment if cluster.separate else cluster.environment | {"RAY_ADDRESS": cluster.ray_address}
        job_file = str(tmp_path / "job.yaml")
        command = (
            ["varve", "submit", job_file, "--to", cluster.address] if cluster.separate else ["varve", "embed", job_file]
        )
        on_head = cluster.on(0, [sys.executable, "-m", *command])
        started = subprocess.Popen(on_head, env=known, stderr=subprocess.PIPE, text=True)
        wait_for_parts(tmp_path / "there", 6)
        cluster.cut_off(1)
        wait_for_parts(tmp_path / "there", 12)
        cluster.bring_back(1)
        _, told = started.communicate(timeout=PATIENCE_S)
        assert started.returncode == 0, told
    there = rows(tmp_path / "there")
    assert there.num_rows == 480
    assert there.equals(rows_of(wanted))
