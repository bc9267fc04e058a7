"""Ends a run early: on a signal, within its grace; or because nothing moves any more, with a diagnosis.

Knows nothing of Ray: it is told how to look, how to ask everyone to stop, and how to say what is lacking. The first
SIGINT or SIGTERM lets the blocks under way finish; a second one ends the process at once. What is committed is whole in
either case.

Signals are heard by a thread of the watch's own: the system may give one to any thread of the process, which does not
wake a main thread that waits in C code, and then Python's handler runs only when that wait is over.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from threading import Event, Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

from varve.monitoring.run_counters import Snapshot

# Spot instances give 30 s or more between the notice and the end; what is left pays for the goodbye.
GRACE_S = 20.0
# A look costs the driver and the counters a millisecond each; a signal is heeded at once.
_LOOK_EVERY_S = 2.0
# For the main thread to leave what it was in.
_LAST_WORDS_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _EndedError(BaseException):
    """Leaves the main thread, past every `except Exception`."""


class Watchdog:
    """Watches over a run while it is entered. Only the main thread can be interrupted; elsewhere nothing is watched."""

    def __init__(
        self,
        look: Callable[[], Snapshot],
        stop: Callable[[], None],
        diagnose: Callable[[Snapshot], str],
        *,
        stall_s: float,
        grace_s: float = GRACE_S,
    ) -> None:
        """Say how.

        Args:
            look: gives the counts.
            stop: asks all workers to end after what they have begun.
            diagnose: says what a run that stands still waits for.
            stall_s: how long nothing may move.
            grace_s: what workers have to end after a signal.
        """
        self._look, self._stop, self._diagnose = look, stop, diagnose
        self._stall_s, self._grace_s = stall_s, grace_s
        self.reason: str | None = None  # why the run ends early; None while it does not
        self._over = False  # the grace has passed
        self._left = Event()
        self._called = Event()  # by a signal, or since the run is left
        self._thread = Thread(target=self._run, daemon=True)
        self._ears = Thread(target=self._hear, daemon=True)
        self._before: dict[signal.Signals, Any] = {}
        self._ear, self._mouth, self._mouth_before = -1, -1, -1

    def __enter__(self) -> Self:
        """Begin."""
        if current_thread() is main_thread():
            self._ear, self._mouth = os.pipe()
            os.set_blocking(self._mouth, False)
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
            self._mouth_before = signal.set_wakeup_fd(self._mouth)
            self._ears.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End; an interruption of our own stops here."""
        self._left.set()
        self._called.set()
        if self._before:
            signal.set_wakeup_fd(self._mouth_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.write(self._mouth, b"\0")
            self._ears.join()
            os.close(self._ear)
            os.close(self._mouth)
        return error is not None and self._over

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """In the main thread, when it runs: the signal itself was heard by the other one."""
        if self._over:
            raise _EndedError

    def _hear(self) -> None:
        """Heed each signal as it comes, until the watch is left."""
        while not self._left.is_set():
            for number in os.read(self._ear, 64):
                self._heed(number)

    def _heed(self, number: int) -> None:
        if number not in _SIGNALS or self._over:
            return
        if self.reason is not None:
            sys.stderr.write("\nstopped at once; what was committed stays\n")
            sys.stderr.flush()
            os._exit(1)
        name = signal.Signals(number).name
        self.reason = f"stopped by {name}"
        sys.stderr.write(
            f"\n{name}: finishing the blocks under way, {self._grace_s:.0f} s at most; once more ends at once\n"
        )
        sys.stderr.flush()
        self._called.set()

    def _run(self) -> None:
        moved_at, seen = time.monotonic(), None
        while not self._called.wait(min(_LOOK_EVERY_S, self._stall_s / 4)):
            now = self._try_to_look()
            if now is not None and now != seen:
                moved_at, seen = time.monotonic(), now
            elif time.monotonic() - moved_at > self._stall_s:
                told = self._diagnose(seen or Snapshot())
                self.reason = f"nothing has moved for {self._stall_s:.0f} s: {told}"
                self._grace_s = 0.0
                break
        if not self._left.is_set():
            self._end()

    def _try_to_look(self) -> Snapshot | None:
        try:
            return self._look()
        except Exception:  # noqa: BLE001 (a counters that is gone for a moment must not end the watch)
            return None

    def _end(self) -> None:
        """Ask, wait, then interrupt the main thread, which may wait inside of anything."""
        Thread(target=self._stop, daemon=True).start()
        if self._left.wait(self._grace_s):
            return
        self._over = True
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)
        if not self._left.wait(_LAST_WORDS_S):
            sys.stderr.write(f"{self.reason}; what was committed stays\n")
            sys.stderr.flush()
            os._exit(1)
