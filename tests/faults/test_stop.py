"""A signal ends a run within its grace, whole, and the next run goes on."""

import signal
import subprocess
import time

import pytest

from tests.faults.kill import command, run_to_the_end, tables, write_source

PATIENCE_S = 120


def start_and_wait_for_parts(argv: list[str], output, parts: int = 1) -> subprocess.Popen:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(output.glob("data/*.parquet"))) < parts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)  # polls with a deadline
    return process


@pytest.mark.timeout(600)
def test_sigterm_ends_whole_within_the_grace_and_the_next_run_goes_on(tmp_path):
    rows, output = 700, tmp_path / "out"
    write_source(tmp_path / "docs", rows)
    argv = command(tmp_path / "docs", output, 40)
    process = start_and_wait_for_parts(argv, output)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    done = sum(table.num_rows for table in tables(output).values())
    assert 0 < done < rows
    assert f"stopped by SIGTERM. {done:,} of {rows:,} rows are committed" in told
    assert "Traceback" not in told
    assert not [path for path in output.rglob("*") if "#" in path.name]  # nothing half written
    run_to_the_end(argv)
    assert sum(table.num_rows for table in tables(output).values()) == rows


@pytest.mark.timeout(300)
def test_second_signal_ends_at_once(tmp_path):
    write_source(tmp_path / "docs", 1200)
    argv = command(tmp_path / "docs", tmp_path / "out", 40)
    process = start_and_wait_for_parts(argv, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    while "once more ends at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=30) == 1
    assert time.monotonic() - began < 5
