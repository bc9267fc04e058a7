"""One job on several hosts, one of which loses its network during the run and gets it back."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file

from tests.reference_run import rows_of
from tests.servers.hosts import hosts, namespaces_missing
from tests.waiting import RUN_S, wait_until


def rows(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])


def wait_for_parts(output: Path, count: int) -> None:
    wait_until(lambda: len(list(output.glob("data/*.parquet"))) >= count, f"{count} parts", timeout_s=RUN_S)


def add_dense(folder: Path) -> str:
    """Let a copy of MiniLM declare a Dense module, whose weights in a subfolder must reach every host."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense/config.json").write_text("{}")
    weight = np.random.default_rng(0).normal(size=(16, 384)).astype(np.float32)
    save_file({"linear.weight": weight}, folder / "3_Dense/model.safetensors")
    return str(folder)


def test_host_cut_off_during_a_run_costs_no_row(job, tmp_path, minilm):
    if missing := namespaces_missing():
        warnings.warn(f"hosts share one address: {missing}", stacklevel=1)
    (tmp_path / "docs").mkdir()
    for shard in range(2):
        texts = [f"row {row} of shard {shard}: " + "some words of a text " * (row % 30) for row in range(240)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"docs/{shard}.parquet")
    model = add_dense(Path(shutil.copytree(minilm, tmp_path / "model")))
    reference_job = job(tmp_path / "docs", model={"name": model}, output={"rows_per_part": 20})
    content = reference_job.model_dump(mode="json")
    content["output"]["path"] = str(tmp_path / "cluster-out")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    with hosts(2) as cluster:
        job_file, environment = str(tmp_path / "job.yaml"), cluster.environment
        if cluster.separate:
            command = ["varve", "submit", job_file, "--to", cluster.address]
        else:
            command = ["varve", "embed", job_file]
            environment = environment | {"RAY_ADDRESS": cluster.ray_address}
        on_head = cluster.on(0, [sys.executable, "-m", *command])
        driver = subprocess.Popen(on_head, env=environment, stderr=subprocess.PIPE, text=True)
        wait_for_parts(tmp_path / "cluster-out", 6)
        cluster.cut_off(1)
        wait_for_parts(tmp_path / "cluster-out", 12)
        cluster.bring_back(1)
        _, log = driver.communicate(timeout=RUN_S)
        assert driver.returncode == 0, log
    result = rows(tmp_path / "cluster-out")
    assert result.num_rows == 480
    assert result["embedding"].type.list_size == 16
    assert result.equals(rows_of(reference_job))
