"""The record of a run survives kills and says how the run ended; a store that fails or hangs costs the run nothing."""

import time
from contextlib import suppress
from dataclasses import replace
from threading import Event

import pytest

from tests.waiting import wait_until
from varve.errors import RunError
from varve.monitoring import history_file
from varve.monitoring.history_file import HistoryFile
from varve.monitoring.run_history import HISTORY_FOLDER, History, read_histories
from varve.monitoring.run_history import Event as HistoryEvent
from varve.storage.object_store import Storage

STARTED_AT = 1.7e9
TAKEN = History(
    started_at=STARTED_AT,
    updated_s=2.0,
    outcome="running",
    reason="",
    before_s={},
    bin_s=1.0,
    rows=(3, 4),
    tokens=(30, 40),
    errors=(0, 1),
    stages={"encode": (1.0, 0.5)},
    replicas=(),
    parts=(),
    parts_left_out=0,
    events=(),
)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(str(tmp_path / "out"))


def end_with(message: str) -> None:
    raise RunError(message)


def test_run_leaves_a_record_before_anything_else_happens(storage):
    with HistoryFile(storage, STARTED_AT):
        wait_until(lambda: read_histories(storage), "the first record")
        (history,) = read_histories(storage)
    assert (history.started_at, history.outcome, history.rows) == (STARTED_AT, "running", ())
    assert [entry.name.partition("-")[0] for entry in storage.list(HISTORY_FOLDER)] == [
        "_varve/history/20231114T221320Z"
    ]


def test_finished_run_has_the_counters_last_record_and_the_phases(storage):
    with HistoryFile(storage, STARTED_AT) as history:
        history.note_phases({"ray": 1.23456})
        history.follow(lambda: TAKEN, lambda: None)
        history.freeze()
    (stored,) = read_histories(storage)
    assert stored.updated_s > TAKEN.updated_s
    expected = replace(TAKEN, updated_s=stored.updated_s, before_s={"ray": 1.235}, outcome="finished")
    assert stored == expected


def test_failed_run_has_its_error(storage):
    with pytest.raises(RunError), HistoryFile(storage, STARTED_AT):
        end_with("the disk is full: \ud800\nadvice")
    (stored,) = read_histories(storage)
    assert (stored.outcome, stored.reason) == ("failed", "the disk is full: ?")


@pytest.mark.parametrize(
    ("reason", "kind"), [("stopped by SIGTERM", "stopping"), ("no progress for 600 s: no node has a GPU", "stalled")]
)
def test_run_that_ends_early_says_why_while_it_ends(storage, reason, kind):
    reasons: list[str] = []
    with suppress(RunError), HistoryFile(storage, STARTED_AT) as history:
        history.follow(lambda: TAKEN, lambda: next(iter(reasons), None))
        reasons.append(reason)
        wait_until(lambda: any(each.events for each in read_histories(storage)), "the event")
        assert read_histories(storage)[0].outcome == "running"
        end_with("stopped")
    (stored,) = read_histories(storage)
    assert (stored.outcome, stored.reason) == ("stopped", reason)
    assert stored.events == (HistoryEvent(at_s=stored.events[0].at_s, kind=kind, text=reason),)


def test_record_is_not_written_again_before_something_changes(storage, monkeypatch):
    monkeypatch.setattr(history_file, "_MOST_INTERVAL_S", 0.01)
    taken, puts, put = [TAKEN], [], Storage.put
    monkeypatch.setattr(Storage, "put", lambda *args: puts.append(put(*args)))
    asked: list[int] = []
    with HistoryFile(storage, STARTED_AT) as history:
        history.follow(lambda: asked.append(1) or taken[0], lambda: None)
        wait_until(lambda: len(asked) > 20, "twenty requests")
        assert len(puts) <= 2
        taken[0] = replace(TAKEN, tokens=(30, 41))
        wait_until(lambda: any(sum(each.tokens) == 71 for each in read_histories(storage)), "the change")
    assert len(puts) <= 4


def test_counters_that_no_longer_answer_leave_their_last_record(storage):
    def fail() -> History:
        raise OSError

    with HistoryFile(storage, STARTED_AT) as history:
        history.follow(lambda: TAKEN, lambda: None)
        history.freeze()
        history.follow(fail, lambda: None)
        history.freeze()
    assert read_histories(storage)[0].rows == TAKEN.rows


def test_store_that_refuses_the_history_does_not_fail_the_run(tmp_path, caplog):
    (tmp_path / "out").touch()
    with HistoryFile(Storage(str(tmp_path / "out")), STARTED_AT) as history:
        wait_until(lambda: caplog.records, "the warning")
        history.follow(lambda: TAKEN, lambda: None)
    assert len(caplog.records) == 1


def test_store_that_hangs_does_not_hold_the_end_of_the_run(storage, monkeypatch):
    monkeypatch.setattr(history_file, "_END_S", 0.2)
    asked, answer = Event(), Event()
    monkeypatch.setattr(Storage, "put", lambda *_args: asked.set() or answer.wait())
    with HistoryFile(storage, STARTED_AT):
        assert asked.wait(10)
        ends_at = time.monotonic()
    assert time.monotonic() - ends_at < 5
    answer.set()
