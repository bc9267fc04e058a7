"""Keeps the history of a run in its output: one object per driver process, replaced as long as the run lasts.

A thread of its own writes it: once at the start, so that a run whose driver is killed leaves a record, then every 5 to
30 s if something changed, and at the end. Knows nothing of Ray. Invariants: no failure of the store or of the counters
fails the run, or delays it by more than seconds; a failure to write is logged once.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from threading import Event as Flag
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from varve.errors import first_line
from varve.monitoring.run_history import HISTORY_FOLDER, MAX_TEXT, Event, History
from varve.storage.object_store import Storage

logger = logging.getLogger(__name__)

# Between two records: a twentieth of the time so far, so that a killed run loses little of its history.
_INTERVAL_SHARE, _LEAST_INTERVAL_S, _MOST_INTERVAL_S = 0.05, 5.0, 30.0
_POLL_S = 1.0  # for the reason of an early end
_END_S = 3.0  # what the end of a run waits for the last record


class HistoryFile:
    """The history of one driver process, while it is entered.

    Attributes:
        started_at: Unix time of the start of the command, in seconds.
    """

    def __init__(self, storage: Storage, started_at: float) -> None:
        """Prepare the first record.

        Args:
            storage: the output.
            started_at: Unix time of the start of the command, in seconds.
        """
        start = datetime.fromtimestamp(started_at, UTC)
        self._name = f"{HISTORY_FOLDER}/{start:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.json"
        self._storage = replace(storage, patient=False)
        self._before_s: dict[str, float] = {}
        self.started_at = started_at
        self._history = _empty(started_at)
        self._take: Callable[[], History] | None = None
        self._reason: Callable[[], str | None] = lambda: None
        self._early_end: Event | None = None
        self._lock = Lock()  # of the fields above
        self._exited, self._failed = Flag(), False
        self._written: tuple[object, ...] = ()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Write the first record, and start."""
        self._thread.start()
        return self

    def note_phases(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of the phases before the dataflow."""
        with self._lock:
            self._before_s = {name: round(value, 3) for name, value in seconds.items()}
            self._history = replace(self._history, before_s=self._before_s)

    def follow(self, take: Callable[[], History], reason: Callable[[], str | None]) -> None:
        """From now on records come from the run's counters.

        Args:
            take: returns what they have recorded.
            reason: returns why the run is ending early, None as long as it is not.
        """
        with self._lock:
            self._take, self._reason = take, reason

    def freeze(self) -> None:
        """Take the last record of the counters, which are about to end."""
        self._refresh()
        with self._lock:
            self._take = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended; waits a few seconds at most."""
        reason = self._reason()
        self._note(reason)
        self.freeze()
        with self._lock:
            outcome, why = _outcome(reason, error)
            self._history = replace(self._history, outcome=outcome, reason=_clean(why))
        self._exited.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        began_s = next_s = time.monotonic()
        while not self._exited.wait(max(0.0, min(_POLL_S, next_s - time.monotonic()))):
            if self._note(self._reason()) or time.monotonic() >= next_s:
                self._refresh()
                self._write()
                interval_s = _INTERVAL_SHARE * (time.monotonic() - began_s)
                next_s = time.monotonic() + min(max(interval_s, _LEAST_INTERVAL_S), _MOST_INTERVAL_S)
        self._write()

    def _note(self, reason: str | None) -> bool:
        """Keep the first reason of an early end, with its time; returns whether it is new."""
        with self._lock:
            if reason is None or self._early_end:
                return False
            at_s = max(0.0, round(time.time() - self._history.started_at, 3))
            kind = "stopping" if reason.startswith("stopped") else "stalled"
            self._early_end = Event(at_s=at_s, kind=kind, text=_clean(reason))
            return True

    def _refresh(self) -> None:
        """Take what is new; the last record stays if the counters don't answer."""
        take = self._take
        if take is None:
            return
        with suppress(Exception):
            taken = take()
            with self._lock:
                if self._take is take:  # else a later record was taken meanwhile
                    self._history = replace(taken, before_s=self._before_s)

    def _write(self) -> None:
        with self._lock:
            history, end = self._history, self._early_end
        content = _content(history, end)
        if content == self._written:
            return
        updated_s = max(history.updated_s, round(time.time() - history.started_at, 3))
        record = replace(history, updated_s=updated_s, events=(*history.events, *([end] if end else ())))
        try:
            self._storage.put(self._name, record.encode())
            self._written = content
        except Exception as e:  # noqa: BLE001 (the history is not the run)
            if not self._failed:
                logger.warning("the run continues without a history, which cannot be written: %s", first_line(e))
            self._failed = True


def _content(history: History, end: Event | None) -> tuple[object, ...]:
    """What makes a record worth writing: everything but the time that passed."""
    work = {name: sum(seconds) for name, seconds in history.stages.items()}
    replicas = tuple((each.number, each.ready_s) for each in history.replicas)
    parts = sum(each.ended_s is not None for each in history.parts), len(history.parts), history.parts_left_out
    return history.outcome, history.before_s, sum(history.tokens), work, replicas, parts, len(history.events), end


def _outcome(early_end: str | None, error: BaseException | None) -> tuple[str, str]:
    """(outcome, reason) of a run that ends."""
    if early_end:
        return "stopped", early_end
    if error is None:
        return "finished", ""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by SIGINT"
    return "failed", first_line(error)


def _clean(text: str) -> str:
    """A text that fits a history."""
    return text.encode(errors="replace").decode()[:MAX_TEXT]


def _empty(started_at: float) -> History:
    return History(
        started_at=started_at,
        updated_s=0.0,
        outcome="running",
        reason="",
        before_s={},
        bin_s=1.0,
        rows=(),
        tokens=(),
        errors=(),
        stages={},
        replicas=(),
        parts=(),
        parts_left_out=0,
        events=(),
    )
