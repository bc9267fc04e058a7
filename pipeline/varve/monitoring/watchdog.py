"""Ends a run early: after a signal, within a grace period; or after a stall, with a diagnosis.

Knows nothing of Ray: it is given functions that take a snapshot, stop the workers and describe a stall. The first
SIGINT, SIGTERM or SIGHUP lets the blocks in work finish; the second one ends the process immediately. Committed parts
are complete in both cases. Invariant: a signal ends the run even if none of these functions returns.

A thread of the watchdog reads the signals. The system may deliver a signal to any thread of the process; that does not
wake a main thread that waits in C code, and Python calls its handler only after that wait.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from threading import Event, Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

from varve.monitoring.run_counters import Snapshot

logger = logging.getLogger(__name__)

# Spot instances give 30 s or more between the notice and the end; the rest is for the shutdown.
GRACE_S = 20.0
# Before a replica is ready there are no blocks to finish.
_START_GRACE_S = 2.0
# A snapshot costs the driver and the counters a millisecond each.
_SNAPSHOT_INTERVAL_S = 2.0
# For the main thread to unwind after its interruption.
_UNWIND_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _InterruptedRunError(BaseException):
    """Unwinds the main thread; no `except Exception` catches it."""


class Watchdog:
    """Watches a run while it is entered. Only the main thread can be interrupted; in other threads it does nothing."""

    def __init__(
        self,
        take_snapshot: Callable[[], Snapshot],
        stop: Callable[[], None],
        diagnose: Callable[[Snapshot], str],
        *,
        stall_s: float,
        grace_s: float = GRACE_S,
    ) -> None:
        """Prepare the watchdog.

        Args:
            take_snapshot: returns the counters of the run.
            stop: makes all workers stop after their present block.
            diagnose: describes what a stalled run waits for.
            stall_s: seconds without any change after which a run is stalled.
            grace_s: seconds that workers have to stop after a signal.
        """
        self._take_snapshot, self._stop, self._diagnose = take_snapshot, stop, diagnose
        self._stall_s, self._grace_s = stall_s, grace_s
        self.reason: str | None = None  # why the run ends early
        self._last: Snapshot | None = None
        self._grace_is_over = False
        self._exited = Event()
        self._watch_thread = Thread(target=self._watch, daemon=True)
        self._signal_thread = Thread(target=self._read_signals, daemon=True)
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._read_fd, self._wakeup_fd, self._previous_wakeup_fd = -1, -1, -1

    def __enter__(self) -> Self:
        """Start."""
        if current_thread() is main_thread():
            self._read_fd, self._wakeup_fd = os.pipe()
            os.set_blocking(self._wakeup_fd, False)
            handled = [number for number in _SIGNALS if not _is_ignored_hangup(number)]
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in handled}
            self._previous_wakeup_fd = signal.set_wakeup_fd(self._wakeup_fd)
            self._signal_thread.start()
            self._watch_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Stop, restore the signal handlers, and swallow the watchdog's own interruption."""
        self._exited.set()
        if self._previous_handlers:
            signal.set_wakeup_fd(self._previous_wakeup_fd)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
            os.write(self._wakeup_fd, b"\0")
            self._signal_thread.join()
            os.close(self._read_fd)
            os.close(self._wakeup_fd)
        return error is not None and self._grace_is_over

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Python calls this in the main thread; the signal thread has handled the signal already."""
        if self._grace_is_over:
            raise _InterruptedRunError

    def _read_signals(self) -> None:
        while not self._exited.is_set():
            for number in os.read(self._read_fd, 64):
                self._handle_signal(number)

    def _handle_signal(self, number: int) -> None:
        if number not in _SIGNALS or self._grace_is_over:
            return
        if self.reason is not None:
            _exit_now("stopped immediately; committed parts are kept")
        name = signal.Signals(number).name
        self.reason = f"stopped by {name}"
        message = "%s: finishing the blocks in work, at most %.0f s; a second signal stops immediately"
        if not (self._last and self._last.replicas):
            self._grace_s = min(self._grace_s, _START_GRACE_S)
        logger.warning(message, name, self._grace_s)
        Thread(target=self._end, daemon=True).start()

    def _watch(self) -> None:
        changed_at, interval_s = time.monotonic(), min(_SNAPSHOT_INTERVAL_S, self._stall_s / 4)
        while True:
            waits_at = time.monotonic()
            if self._exited.wait(interval_s) or self.reason is not None:
                return
            # A machine that slept and a process that was stopped take longer, and no worker ran meanwhile.
            changed_at += max(0.0, time.monotonic() - waits_at - interval_s)
            now = self._try_snapshot()
            if now is not None and now != self._last:
                changed_at, self._last = time.monotonic(), now
            elif time.monotonic() - changed_at > self._stall_s and self.reason is None:
                self.reason = f"no progress for {self._stall_s:.0f} s: {self._diagnose(self._last or Snapshot())}"
                self._grace_s = 0.0
                self._end()

    def _try_snapshot(self) -> Snapshot | None:
        try:
            return self._take_snapshot()
        except Exception:  # noqa: BLE001 (the counters may be unreachable for a moment)
            return None

    def _end(self) -> None:
        """Stop the workers, wait, then interrupt the main thread, which may be waiting anywhere."""
        Thread(target=self._stop, daemon=True).start()
        if self._exited.wait(self._grace_s):
            return
        self._grace_is_over = True
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)
        if not self._exited.wait(_UNWIND_S):
            _exit_now(f"{self.reason}; committed parts are kept")


def _is_ignored_hangup(number: signal.Signals) -> bool:
    """Whether this is SIGHUP and the process ignores it, as under `nohup`."""
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _exit_now(message: str) -> None:
    """End the process without unwinding its threads."""
    logger.error(message)
    logging.shutdown()
    os._exit(1)
