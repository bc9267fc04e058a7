"""What the progress line of a run shows, and the line of a run that `varve submit` follows."""

import sys

import pytest

from tests.waiting import wait_until
from varve.monitoring import progress_line
from varve.monitoring.progress_line import ProgressLine
from varve.monitoring.progress_text import ProgressText
from varve.monitoring.run_counters import ReplicaCount, Snapshot
from varve.monitoring.terminal_line import fit


@pytest.fixture
def line(monkeypatch, capsys):
    """(snapshot, committed rows, total rows) → the first line that appears."""
    monkeypatch.setenv("VARVE_FOLLOWED", "1")
    monkeypatch.setattr(progress_line, "_FOLLOWED_INTERVAL_S", 0.1)

    def first_line(snapshot: Snapshot, committed_rows: int = 0, total_rows: int | None = 100) -> str:
        output = [""]

        def has_line() -> bool:
            output[0] += capsys.readouterr().err
            return "\n" in output[0]

        with ProgressLine(lambda: snapshot, ProgressText(committed_rows, total_rows), sys.stderr):
            wait_until(has_line, "the line")
        return output[0].splitlines()[0]

    return first_line


def test_line_with_all_rows_encoded_shows_the_rows_to_write(line):
    text = line(Snapshot(rows=60, replicas=1, missing_rows=25), committed_rows=40)
    assert "100 of 100 rows" in text
    assert "25 rows to write" in text
    assert "left" not in text


def test_line_during_encoding_shows_replicas_and_errors_but_no_writes(line):
    text = line(Snapshot(rows=30, replicas=2, missing_rows=90, errors=3))
    assert "30 of 100 rows" in text
    assert "to write" not in text
    assert "2 replica(s)" in text
    assert "3 failed rows" in text


def test_line_before_the_first_block_shows_what_the_run_waits_for(line):
    assert "starting replicas" in line(Snapshot())


def test_narrow_line_keeps_the_share_and_the_time_left():
    text = ProgressText(committed_rows=0, total_rows=1_000_000)
    for clock_s in (0, 10):
        rows = 100_000 + 1_000 * clock_s
        snapshot = Snapshot(
            rows=rows, tokens=10 * rows, errors=3, replicas=1, by_replica={0: ReplicaCount("node", 10 * rows)}
        )
        line = text.describe(snapshot, clock_s)
    assert line == "11% · 14:50 left · 110,000 of 1,000,000 rows · 3 failed rows · 10,000 tokens/s · 1 replica(s)"
    assert fit(line, 46) == "11% · 14:50 left · 110,000 of 1,000,000 rows"
    assert fit(line, 20) == "11% · 14:50 left"


def test_line_of_a_source_without_known_rows_shows_rows_and_speed():
    text = ProgressText(committed_rows=5, total_rows=None)
    for clock_s in (0, 10):
        tokens = 1000 + 100 * clock_s
        line = text.describe(Snapshot(rows=100, tokens=tokens, by_replica={0: ReplicaCount("node", tokens)}), clock_s)
    assert line == "105 rows · 100 tokens/s · 0 replica(s)"
