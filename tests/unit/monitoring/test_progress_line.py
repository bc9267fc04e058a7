"""What the line of a run says to somebody who follows it."""

import sys

import pytest

from tests.waiting import wait_until
from varve.monitoring.progress_line import ProgressLine
from varve.monitoring.run_counters import Snapshot


@pytest.fixture
def says(monkeypatch, capsys):
    """Snapshot, rows done before → the first line that is shown of it."""
    monkeypatch.setenv("VARVE_FOLLOWED", "1")

    def line_of(snapshot: Snapshot, done_rows: int = 0, total_rows: int | None = 100) -> str:
        shown = [""]

        def is_there() -> bool:
            shown[0] += capsys.readouterr().err
            return "\n" in shown[0]

        with ProgressLine(lambda: snapshot, done_rows, total_rows, sys.stderr):
            wait_until(is_there, "the line")
        return shown[0].splitlines()[0]

    return line_of


def test_line_of_a_run_whose_writes_lag_says_how_many_rows_they_lag(says):
    told = says(Snapshot(rows=60, replicas=1, missing_rows=25), done_rows=40)
    assert "100 of 100 rows" in told
    assert "25 rows to write" in told
    assert "left" not in told


def test_line_of_a_run_that_is_encoding_says_nothing_of_writes(says):
    told = says(Snapshot(rows=30, replicas=2, missing_rows=90, errors=3))
    assert "30 of 100 rows" in told
    assert "to write" not in told
    assert "2 replica(s)" in told
    assert "3 error rows" in told


def test_line_before_the_first_block_says_what_is_awaited(says):
    assert "starting replicas" in says(Snapshot())
