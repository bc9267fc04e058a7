"""The sbatch script on this machine: two raylets for two nodes, with replacements of Slurm's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.waiting import PATIENCE_S, RUN_S, wait_until

SCRIPT = Path(__file__).parents[2] / "jobs/templates/slurm/varve.sbatch"

# Starts the tasks of a step on this machine, waits for them, and forwards SIGTERM, as Slurm does.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
started=()
trap 'kill -TERM "${started[@]}"' TERM
for ((task = 0; task < tasks; task++)); do
    "$@" &
    started+=($!)
done
for pid in "${started[@]}"; do wait "$pid" || wait "$pid"; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>"$SCONTROL_CALLS"
"""


class Slurm:
    """One job of Slurm: `submit` runs the script as sbatch does, `requeued` lists the calls of scontrol."""

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self.job = folder, job
        self.running: subprocess.Popen[str] | None = None
        self.id = str(os.getpid() * 100 + time.monotonic_ns() % 100)
        self.calls = folder / "calls"
        commands = folder / "bin"
        commands.mkdir()
        for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (commands / name).write_text(content)
            (commands / name).chmod(0o755)
        python = Path(sys.executable).parent
        self.environment = os.environ | {
            "PATH": f"{commands}:{python}:{os.environ['PATH']}",
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "SLURM_JOB_ID": self.id,
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_ON_NODE": "2",
            "SLURM_CPUS_PER_TASK": "2",
            "SCONTROL_CALLS": str(self.calls),
        }
        self.environment.pop("RAY_ADDRESS", None)

    def submit(self) -> subprocess.Popen[str]:
        self.end()
        self.running = subprocess.Popen(
            ["bash", str(SCRIPT), self.job],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.running

    def end(self) -> None:
        if self.running and self.running.poll() is None:
            self.running.terminate()
            self.running.communicate(timeout=PATIENCE_S)

    @property
    def requeued(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    @property
    def scratch(self) -> Path:
        return Path(f"/tmp/varve-{self.id}")


@pytest.fixture
def slurm(tmp_path, tiny):
    (tmp_path / "docs").mkdir()
    for shard in range(4):
        table = pa.table({"text": [f"text {row} of shard {shard}" for row in range(60)]})
        pq.write_table(table, tmp_path / f"docs/{shard}.parquet")
    job = {
        "source": {"dataset": "parquet", "data_files": "docs/*.parquet", "text": "text"},
        "model": {"name": tiny("bert"), "max_tokens": 64},
        "output": {"path": "out", "rows_per_part": 20},
        "compute": {"replicas": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    slurm = Slurm(tmp_path, "job.yaml")
    yield slurm
    slurm.end()


def test_job_out_of_time_requeues_itself_and_resumes(slurm, tmp_path):
    first = slurm.submit()
    wait_until((tmp_path / "out/_varve/job.json").exists, "the run has started", alive=first, timeout_s=RUN_S)
    first.send_signal(signal.SIGUSR1)
    log, _ = first.communicate(timeout=RUN_S)
    assert first.returncode == 1, log
    assert slurm.requeued == [f"requeue {slurm.id}"], log
    assert not slurm.scratch.exists()

    second = slurm.submit()
    log, _ = second.communicate(timeout=RUN_S)
    assert second.returncode == 0, log
    assert "2 of 2 " in log  # nodes of Ray


def test_link_with_the_name_of_the_private_folder_is_not_followed(tmp_path):
    slurm = Slurm(tmp_path, "job.yaml")
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    slurm.scratch.symlink_to(tmp_path / "elsewhere")
    try:
        log, _ = slurm.submit().communicate(timeout=PATIENCE_S)
    finally:
        slurm.scratch.unlink()
    assert log == f"{slurm.scratch} is not a folder of this user\n"
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755
    assert list((tmp_path / "elsewhere").iterdir()) == []
