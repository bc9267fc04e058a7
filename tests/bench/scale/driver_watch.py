"""Runs a command until it succeeds, kills its driver on the way, and measures the driver's process from outside.

Knows nothing of what the command does but how many parts are there. CPU seconds and memory are those of the driver's
process alone, without Ray's and the workers'. A sample of both takes microseconds; parts are counted every two seconds.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.bench.scale.idle_driver import LISTING
from tests.servers.processes import descendants, start

_POLL_S = 0.2
_COUNT_S = 2.0
_PATIENCE_S = 300
_COUNTERS = b"ray::MeteredCounters"
_MAX_FAILURES = 6
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """The driver at one moment."""

    at_s: float  # since the first attempt began
    cpu_s: float  # of this driver
    memory_mb: float
    parts: int
    counters_cpu_s: float = 0.0  # of the actor that counts what workers report


@dataclass
class Attempt:
    """One driver."""

    samples: list[Sample] = field(default_factory=list)
    peak_mb: float = 0.0  # until all parts were there
    end_peak_mb: float = 0.0  # after that
    all_parts_s: float | None = None  # when all parts were there
    ended_s: float = 0.0
    code: int | None = None  # None: killed
    listings_s: list[float] = field(default_factory=list)
    counters: int | None = None  # id of the actor's process
    leftover_s: float = 0.0  # until the processes of a killed driver had ended

    @property
    def cpu_s(self) -> float:
        return self.samples[-1].cpu_s

    @property
    def writing(self) -> tuple[int, float, float]:
        """(parts, CPU seconds of the driver, of the counters) from the first to the last sample that has more parts."""
        pairs = [(one, next_) for one, next_ in pairwise(self.samples) if next_.parts > one.parts]
        if not pairs:
            return 0, 0.0, 0.0
        first, last = pairs[0][0], pairs[-1][1]
        counters_s = last.counters_cpu_s - first.counters_cpu_s if first.counters_cpu_s else 0.0
        return last.parts - first.parts, last.cpu_s - first.cpu_s, counters_s


def run_with_kills(
    argv: Sequence[str], count: Callable[[], int], total: int, kill_at: Sequence[int], folder: Path
) -> list[Attempt]:
    """Run a command; kill its process each time that so many parts are there, and run it again.

    Args:
        argv: the command.
        count: parts that are there.
        total: parts at the end.
        kill_at: ascending.
        folder: takes the logs of the attempts.

    Raises:
        AssertionError: attempts that were not killed failed again and again (Ray does not start within 30 s on a busy
            machine), or processes of a killed one do not end.
    """
    began, attempts, limits, failures = time.perf_counter(), list[Attempt](), [*kill_at, None], 0
    while not attempts or attempts[-1].code != 0:
        log = folder / f"attempt-{len(attempts)}.log"
        attempt = _run(argv, count, total, limits[0], log, began)
        attempts.append(attempt)
        lines = log.read_text(errors="replace").splitlines()
        attempt.listings_s = [float(line.removeprefix(LISTING)) for line in lines if line.startswith(LISTING)]
        if attempt.code is None:
            limits.pop(0)
        elif attempt.code:
            failures += 1
            assert failures < _MAX_FAILURES, f"exit code {attempt.code}\n" + "\n".join(lines[-20:])
    return attempts


def _run(
    argv: Sequence[str], count: Callable[[], int], total: int, kill_at: int | None, log: Path, began: float
) -> Attempt:
    before, attempt = set(descendants()), Attempt()
    process = start(argv, log)
    parts, counted_at = count(), time.perf_counter()
    while process.poll() is None:
        now = time.perf_counter()
        if attempt.all_parts_s is None and now - counted_at >= min(_COUNT_S, _POLL_S + total / 10_000):
            parts, counted_at = count(), now
            attempt.counters = attempt.counters or _find_counters(process.pid)
        with suppress(OSError, KeyError):  # it has ended
            _measure(attempt, process.pid, parts, now - began)
        if attempt.all_parts_s is None and parts >= total:
            attempt.all_parts_s = now - began
            with suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins again
        if kill_at is not None and parts >= kill_at:
            process.send_signal(signal.SIGKILL)
            process.wait()
            attempt.ended_s = time.perf_counter() - began
            _wait_for_end(before, attempt)
            return attempt
        time.sleep(_POLL_S)
    attempt.code, attempt.ended_s = process.returncode, time.perf_counter() - began
    return attempt


def _measure(attempt: Attempt, pid: int, parts: int, at_s: float) -> None:
    cpu_s, counters_s = _cpu_s(pid), 0.0
    if attempt.counters:
        with suppress(OSError):  # it has ended
            counters_s = _cpu_s(attempt.counters)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory, peak = (int(status[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))
    attempt.samples.append(Sample(at_s, cpu_s, memory, parts, counters_s))
    if attempt.all_parts_s is None:
        attempt.peak_mb = peak
    else:
        attempt.end_peak_mb = peak


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _find_counters(driver: int) -> int | None:
    return next((pid for pid, title in descendants(driver).items() if title.startswith(_COUNTERS)), None)


def _wait_for_end(before: set[int], attempt: Attempt) -> None:
    """Wait until the processes of a killed driver have ended by themselves.

    They are children of this process by now. Ray's workers take a raylet that has ended, and was not waited for, for
    one that lives, so each child is waited for.
    """
    started = time.perf_counter()
    while left := {pid: title for pid, title in descendants().items() if pid not in before and title}:
        attempt.leftover_s = time.perf_counter() - started
        titles = sorted(title.replace(b"\0", b" ")[:120].decode(errors="replace") for title in left.values())
        assert attempt.leftover_s < _PATIENCE_S, f"{len(left)} process(es) outlive their driver: {titles}"
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.5)


def idle_driver(*arguments: str, grouped: bool = False) -> list[str]:
    """The command of a driver whose encoder does nothing."""
    return [sys.executable, "-m", "tests.bench.scale.idle_driver", *(["--grouped"] if grouped else []), *arguments]
