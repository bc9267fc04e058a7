"""A run that is asked to end, or that stands still, ends; one that moves is left alone."""

import os
import signal
import time
from itertools import count
from threading import Event

import pytest

from tests.waiting import PATIENCE_S
from varve.monitoring.run_counters import Snapshot
from varve.monitoring.watchdog import Watchdog


def test_run_in_which_nothing_moves_ends_with_its_diagnosis():
    watch = Watchdog(Snapshot, lambda: None, lambda _now: "0 of 1 CPUs are free", stall_s=1, grace_s=0)
    began = time.monotonic()
    with watch:
        Event().wait(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S
    assert watch.reason is not None
    assert watch.reason.endswith("0 of 1 CPUs are free")


def test_run_that_moves_is_left_alone():
    rows = count()
    with Watchdog(lambda: Snapshot(rows=next(rows)), lambda: None, lambda _now: "", stall_s=1) as watch:
        Event().wait(3)
    assert watch.reason is None


def test_signal_asks_the_workers_and_lets_the_run_end_by_itself():
    asked = Event()
    with Watchdog(Snapshot, asked.set, lambda _now: "", stall_s=60, grace_s=60) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(PATIENCE_S)
    assert watch.reason == "stopped by SIGTERM"


@pytest.fixture
def deaf():
    """A main thread whose signals other threads get, as the system may give them to any."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_signal_that_another_thread_gets_is_heard_while_the_main_thread_waits(request):
    asked = Event()
    with Watchdog(Snapshot, asked.set, lambda _now: "", stall_s=60, grace_s=60) as watch:
        request.getfixturevalue("deaf")  # now: the threads of the watch must not inherit it
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(PATIENCE_S)
    assert watch.reason == "stopped by SIGTERM"


def test_run_that_does_not_end_within_its_grace_is_interrupted():
    with Watchdog(Snapshot, lambda: None, lambda _now: "", stall_s=60, grace_s=1) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        Event().wait(PATIENCE_S)
        raise AssertionError("not interrupted")  # noqa: EM101, TRY003
    assert watch.reason == "stopped by SIGTERM"


def test_handlers_are_as_before_once_the_run_is_over():
    before = signal.getsignal(signal.SIGTERM)
    with Watchdog(Snapshot, lambda: None, lambda _now: "", stall_s=60):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
