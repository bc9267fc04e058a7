"""What a run writes to stderr, tested in a new process: Ray configures its loggers at its first import."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def test_run_writes_only_its_own_lines_to_stderr(minilm, tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"body": ["one text", "another"]}), tmp_path / "docs/0.parquet")
    command = [sys.executable, "-m", "varve", "embed", "--dataset", str(tmp_path / "docs"), "--text", "body"]
    command += ["--model", minilm, "--feature", "e=mean", "--output", str(tmp_path / "features")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("1 shard(s), 2 rows")
    assert "declares another vector: mean → length 1; 256 tokens" in lines[1]
    assert all("replica" in line for line in lines[2:]), lines  # progress of a slow run
