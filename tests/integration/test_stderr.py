"""What a user sees of a run, in a process of its own: Ray sets its loggers when it is first imported."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def test_a_run_puts_nothing_on_stderr_but_its_own_lines(minilm, tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"body": ["one text", "another"]}), tmp_path / "docs/0.parquet")
    command = [sys.executable, "-m", "varve", "embed", "--dataset", str(tmp_path / "docs"), "--text", "body"]
    command += ["--model", minilm, "--output", str(tmp_path / "features")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert lines[0].startswith("1 shard(s), 2 rows")
    assert lines[1] == (
        f"sentence-transformers would use {minilm} otherwise: vectors of length 1 (no feature is normalized); "
        "texts cut at 256 tokens (here 512)"
    )
    assert all("replica" in line for line in lines[2:]), lines  # the progress of a slow run
