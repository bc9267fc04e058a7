"""One output, whose run is asked to end, killed, told to end at once, and at last left alone."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pytest

from tests.faults.kill import command, tables, write_source
from tests.reference_run import rows_of
from tests.waiting import PATIENCE_S, wait_until
from varve import Job
from varve.cli.main import run_command

ROWS = 900


@dataclass
class Ended:
    """How an interrupted run went."""

    code: int
    told: str
    seconds: float  # from the signal to the end
    rows: int  # committed by then
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
        wait_until(until, "the moment to stop it", alive=process)
    except BaseException:
        process.kill()
        raise
    return process


def end(process: subprocess.Popen, output, *signals: signal.Signals) -> Ended:
    told = ""
    for count, number in enumerate(signals, 1):
        process.send_signal(number)
        began = time.monotonic()
        # The system makes one of two equal signals of which the first is still to be taken.
        while count < len(signals) and "once more ends at once" not in told:
            told += process.stderr.readline()
            assert process.poll() is None, told
    code, seconds = process.wait(timeout=PATIENCE_S), time.monotonic() - began
    told += process.communicate(timeout=PATIENCE_S)[1]  # until all that it started has let go of the pipe
    return Ended(
        code=code,
        told=told,
        seconds=seconds,
        rows=sum(table.num_rows for table in tables(output).values()),
        half_written=[path.name for path in output.rglob("*") if "#" in path.name],
    )


@pytest.fixture(scope="module")
def interrupted(folder) -> dict[str, Ended]:
    output = folder / "out"

    def parts() -> int:
        return len(list(output.glob("data/*.parquet")))

    def one_more() -> Callable[[], bool]:
        before = parts()
        return lambda: parts() > before

    return {
        name: end(start(output, one_more()), output, *signals)
        for name, signals in {
            "asked to end": [signal.SIGTERM],
            "killed": [signal.SIGKILL],
            "told twice": [signal.SIGINT, signal.SIGINT],
        }.items()
    }


def test_sigterm_ends_whole_within_the_grace(interrupted):
    run = interrupted["asked to end"]
    assert run.code == 1
    assert run.seconds < 30
    assert 0 < run.rows < ROWS
    assert f"stopped by SIGTERM. {run.rows:,} of {ROWS:,} rows are committed" in run.told
    assert "Traceback" not in run.told
    assert run.half_written == []


def test_second_signal_ends_at_once(interrupted):
    run = interrupted["told twice"]
    assert run.code == 1
    assert "stopped at once" in run.told
    assert "the same command goes on" not in run.told  # the end of a run that was let to finish its blocks


def test_run_that_goes_on_after_kills_and_signals_ends_with_the_rows_of_an_undisturbed_one(interrupted, folder):
    assert interrupted["killed"].code == -signal.SIGKILL
    assert interrupted["asked to end"].rows < interrupted["killed"].rows < ROWS
    assert run_command(["embed", *argv_to(folder / "out")[3:]]) == 0
    stored = pa.concat_tables(tables(folder / "out").values()).sort_by([("shard", "ascending"), ("row", "ascending")])
    assert stored.num_rows == ROWS
    written = json.loads((folder / "out/_varve/manifest.json").read_text())
    assert stored.equals(rows_of(Job.parse(written["job"])))
