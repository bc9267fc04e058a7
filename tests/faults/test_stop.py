"""One output whose run is stopped by one signal, killed, stopped by two signals, and finally completes."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pytest

from tests.faults.docstring_job import command, tables, write_source
from tests.reference_run import rows_of
from tests.waiting import PATIENCE_S, RUN_S, wait_until
from varve import Job
from varve.cli.main import run_command
from varve.monitoring.run_history import read_histories
from varve.storage.object_store import Storage

ROWS = 900


@dataclass
class Stopped:
    """Result of an interrupted run."""

    code: int
    log: str
    seconds: float  # from the last signal to the end
    rows: int  # committed in the output
    half_written: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    write_source(folder / "docs", ROWS)
    return folder


def argv_to(output) -> list[str]:
    return command(output.parent / "docs", output, 40)


def start(output, until: Callable[[], bool]) -> subprocess.Popen:
    process = subprocess.Popen(
        argv_to(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(until, "a new part", alive=process, timeout_s=RUN_S)
    except BaseException:
        process.kill()
        raise
    return process


def end(process: subprocess.Popen, output, *signals: signal.Signals) -> Stopped:
    log = ""
    for count, number in enumerate(signals, 1):
        process.send_signal(number)
        signalled_at = time.monotonic()
        # Two equal signals become one if the first one is still pending.
        while count < len(signals) and number.name not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
    code, seconds = process.wait(timeout=PATIENCE_S), time.monotonic() - signalled_at
    log += process.communicate(timeout=PATIENCE_S)[1]  # returns when all processes of the run have closed the pipe
    return Stopped(
        code=code,
        log=log,
        seconds=seconds,
        rows=sum(table.num_rows for table in tables(output).values()),
        half_written=[path.name for path in output.rglob("*") if "#" in path.name],
    )


@pytest.fixture(scope="module")
def interrupted(folder) -> dict[str, Stopped]:
    output = folder / "out"

    def num_parts() -> int:
        return len(list(output.glob("data/*.parquet")))

    def has_new_part() -> Callable[[], bool]:
        previous = num_parts()
        return lambda: num_parts() > previous

    return {
        name: end(start(output, has_new_part()), output, *signals)
        for name, signals in {
            "one signal": [signal.SIGTERM],
            "killed": [signal.SIGKILL],
            "two signals": [signal.SIGHUP, signal.SIGINT],
        }.items()
    }


@pytest.fixture(scope="module")
def completed(interrupted, folder) -> dict[str, Stopped]:
    """The interrupted runs, after one that completed."""
    assert run_command(argv_to(folder / "out")[3:]) == 0
    return interrupted


def test_run_with_one_signal_ends_within_the_grace_period_without_half_written_parts(interrupted):
    run = interrupted["one signal"]
    assert run.code == 1
    assert run.seconds < 30
    assert 0 < run.rows < ROWS
    assert "SIGTERM" in run.log
    assert f"{run.rows:,} of {ROWS:,} rows" in run.log
    assert "Traceback" not in run.log
    assert run.half_written == []


def test_second_signal_ends_the_run_immediately(interrupted):
    run = interrupted["two signals"]
    assert run.code == 1
    assert "SIGHUP" in run.log
    assert f"of {ROWS:,} rows are" not in run.log  # the message of a run that finished its blocks


def test_run_resumed_after_kills_and_signals_has_the_rows_of_an_undisturbed_run(completed, folder):
    assert completed["killed"].code == -signal.SIGKILL
    assert completed["one signal"].rows < completed["killed"].rows < ROWS
    stored = pa.concat_tables(tables(folder / "out").values()).sort_by([("shard", "ascending"), ("row", "ascending")])
    assert stored.num_rows == ROWS
    written = json.loads((folder / "out/_varve/manifest.json").read_text())
    assert stored.equals(rows_of(Job.parse(written["job"])))


def test_each_driver_process_leaves_its_history(completed, folder):
    histories = read_histories(Storage(str(folder / "out")))
    # A driver that is killed, or ended by a second signal, has no time to say so.
    assert [history.outcome for history in histories] == ["stopped", "running", "running", "finished"]
    assert histories[0].reason == "stopped by SIGTERM"
    assert [event.kind for event in histories[0].events] == ["stopping"]
    # Rows of parts that were not committed any more are counted too.
    assert sum(histories[0].rows) >= completed["one signal"].rows
    assert sum(histories[-1].rows) == ROWS - completed["two signals"].rows
    for history in (histories[0], histories[-1]):
        assert sum(map(sum, (replica.tokens for replica in history.replicas))) == sum(history.tokens) > 0
        assert sum(span.tokens for span in history.parts) == sum(history.tokens)
        assert {"ray", "imports", "plan"} <= set(history.before_s)
        assert 0 < history.replicas[0].ready_s[0] < history.updated_s
        assert all(history.replicas[0].ready_s[0] <= span.begun_s <= history.updated_s for span in history.parts)
