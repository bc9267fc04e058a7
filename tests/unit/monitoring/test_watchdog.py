"""The watchdog ends a run after a signal or a stall, and leaves a run that makes progress alone."""

import os
import signal
import subprocess
import sys
from itertools import count
from threading import Event

import pytest

from tests.waiting import PATIENCE_S
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.watchdog import Watchdog


def test_run_without_progress_ends_with_the_diagnosis():
    with Watchdog(Snapshot, lambda: None, lambda _now: "DIAGNOSIS", stall_s=0.2, grace_s=0) as watchdog:
        Event().wait(PATIENCE_S)
        raise AssertionError("not interrupted")  # noqa: EM101, TRY003
    assert watchdog.reason is not None
    assert watchdog.reason.endswith("DIAGNOSIS")


def test_run_with_progress_continues():
    stall_s, rows, is_past_stall = 0.2, count(), Event()

    def take_snapshot() -> Snapshot:  # every stall_s / 4
        snapshot = Snapshot(rows=next(rows))
        if snapshot.rows == 8:
            is_past_stall.set()
        return snapshot

    with Watchdog(take_snapshot, lambda: None, lambda _now: "", stall_s=stall_s) as watchdog:
        assert is_past_stall.wait(PATIENCE_S)
    assert watchdog.reason is None


RESUMED = """
import signal
import sys
from threading import Event
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.watchdog import Watchdog

is_watched, is_resumed, is_over = Event(), Event(), Event()
signal.signal(signal.SIGCONT, lambda *_: is_resumed.set())
looks = [0, 0]

def take_snapshot():
    looks[is_resumed.is_set()] += 1
    is_watched.set()
    if looks[1] == 2:
        is_over.set()
    return Snapshot()

with Watchdog(take_snapshot, lambda: None, lambda _now: "", stall_s=4, grace_s=0) as watchdog:
    is_watched.wait()
    is_over.wait(0.5)  # until the watchdog waits for its second look, a second after the first one
    print("watched", flush=True)
    while not is_over.wait(0.1):
        pass
sys.exit(watchdog.reason)
"""


def test_time_in_which_the_process_was_stopped_is_no_stall():
    process = subprocess.Popen([sys.executable, "-c", RESUMED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"watched\n"
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4.5)
    process.send_signal(signal.SIGCONT)
    _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, message.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_workers_and_lets_the_run_finish(number):
    stop_requested = Event()
    with Watchdog(Snapshot, stop_requested.set, lambda _now: "", stall_s=60, grace_s=60) as watchdog:
        os.kill(os.getpid(), number)
        assert stop_requested.wait(PATIENCE_S)
    assert number.name in watchdog.reason


def test_signal_ends_a_run_whose_counters_do_not_answer():
    asked, answered = Event(), Event()

    def take_snapshot() -> Snapshot:
        asked.set()
        answered.wait(PATIENCE_S)
        return Snapshot()

    with Watchdog(take_snapshot, lambda: None, lambda _now: "", stall_s=1, grace_s=0.2) as watchdog:
        assert asked.wait(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGTERM)
        Event().wait(PATIENCE_S)
        raise AssertionError("not interrupted")  # noqa: EM101, TRY003
    answered.set()
    assert "SIGTERM" in watchdog.reason


def test_hangup_that_the_process_ignores_is_still_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Watchdog(Snapshot, lambda: None, lambda _now: "", stall_s=60) as watchdog:
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, previous)
    assert watchdog.reason is None


@pytest.fixture
def blocked_sigterm():
    """The main thread blocks SIGTERM, so that the system delivers it to another thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_signal_delivered_to_another_thread_is_handled_while_the_main_thread_waits(request):
    stop_requested = Event()
    with Watchdog(Snapshot, stop_requested.set, lambda _now: "", stall_s=60, grace_s=60) as watchdog:
        request.getfixturevalue("blocked_sigterm")  # after the watchdog's threads started, which would inherit it
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested.wait(PATIENCE_S)
    assert "SIGTERM" in watchdog.reason


def test_run_that_does_not_end_within_the_grace_period_is_interrupted():
    with Watchdog(Snapshot, lambda: None, lambda _now: "", stall_s=60, grace_s=0.2) as watchdog:
        os.kill(os.getpid(), signal.SIGTERM)
        Event().wait(PATIENCE_S)
        raise AssertionError("not interrupted")  # noqa: EM101, TRY003
    assert "SIGTERM" in watchdog.reason


def test_handlers_are_restored_after_the_run():
    previous = signal.getsignal(signal.SIGTERM)
    with Watchdog(Snapshot, lambda: None, lambda _now: "", stall_s=60):
        assert signal.getsignal(signal.SIGTERM) != previous
    assert signal.getsignal(signal.SIGTERM) == previous
