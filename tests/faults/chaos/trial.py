"""Runs one scenario: starts drivers until one exits with 0, injects the faults, and compares the result.

Invariants: a driver may exit with 0 or 1, or be killed; its log has no traceback; when the last one has ended, its
processes end too.
"""

import os
import signal
import subprocess
import time
from collections import Counter, deque
from pathlib import Path
from random import Random

from tests.faults.chaos.clock import Clock
from tests.faults.chaos.faults import Machine, has_clock
from tests.faults.chaos.kinds import KINDS
from tests.faults.chaos.kinds.kind import Inputs, Work
from tests.faults.chaos.leftovers import Leftovers
from tests.faults.chaos.ongoing import Ongoing
from tests.faults.chaos.ray_cluster import RayCluster
from tests.faults.chaos.scenario import Event, Scenario
from tests.faults.chaos.stores import Store
from tests.faults.chaos.summary import REQUEST

MAX_STARTS = 20
# From this start on, requests do not fail any more.
CALM_START = 10
# Longer than the product waits for a store.
_DRIVER_S = 400
_SHOWN = 3000  # characters of a log
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Trial:
    """One scenario that runs.

    Attributes:
        setting: where.
        store: to which it writes.
        cluster: that it joins, if it joins one.
        work: its job.
        driver: the present one.
        clock: of the drivers, if it is not the system's.
        is_behind: whether the source has changed since a driver started.
        counts: faults by kind.
        starts: drivers so far.
    """

    def __init__(self, scenario: Scenario, machine: Machine, store: Store, cluster: RayCluster, folder: Path) -> None:
        self.scenario, self.setting, self.store, self.cluster = scenario, scenario.setting, store, cluster
        self.work: Work
        self.driver: subprocess.Popen
        self._drivers: list[subprocess.Popen] = []
        self.is_behind, self.starts = False, 0
        self.counts: Counter[str] = Counter()
        self._ongoing = Ongoing(self.counts)
        self.log, self._folder = folder / "drivers.log", folder
        self._events, self._others = deque(scenario.events), []
        self.clock = Clock(machine.clock, folder) if machine.clock and has_clock(self.setting, machine) else None

    def run(self, inputs: Inputs) -> None:
        """Run the job under faults, and compare.

        Raises:
            AssertionError: a promise does not hold.
        """
        self.store.calm()
        kind = KINDS[self.scenario.kind]
        self.work = kind.begin(self.store, inputs, Random(self.scenario.work_seed))
        leftovers = Leftovers()
        try:
            for control in self.store.controls:
                control.faults(**self.scenario.requests, seed=self.scenario.seed)
            for argv in self.work.commands:
                self._repeat(argv)
            self._count_requests()
            self.store.calm()
            while self.is_behind:  # the source may change during the last run too
                self._repeat(self.work.commands[-1])
        finally:
            self._ongoing.end_all()
            self._count_requests()
            self.store.calm()
            for process in self._drivers:
                process.kill()
        assert "Traceback" not in self.log.read_text(), f"a driver ended with a traceback\n{self.log_end()}"
        leftovers.check()
        self.work.check(self._folder)

    def _repeat(self, argv: list[str]) -> None:
        """Run a command until it exits with 0, and wait for the second drivers."""
        for start in range(MAX_STARTS):
            if start == CALM_START:
                self._count_requests()
                self.store.calm()
            self.is_behind = False
            self._argv, self.driver = argv, self._start(argv)
            self._accompany()
            self._check_code(self.driver.returncode)
            if self.driver.returncode == 0:
                return self._await_others()
        msg = f"not done after {MAX_STARTS} starts\n{self.log_end()}"
        raise AssertionError(msg)

    def _start(self, argv: list[str]) -> subprocess.Popen:
        self.starts += 1
        environment = {**os.environ, **self.store.faulty, **_QUIET}
        if self.setting.has_cluster:
            environment["RAY_ADDRESS"] = self.cluster.use({**self.store.faulty, **_QUIET})
        if self.clock:
            self.clock.jump(0)
            environment |= self.clock.environment
        with self.log.open("ab") as log:
            self._drivers.append(
                subprocess.Popen(argv, stdout=log, stderr=log, env=environment, start_new_session=True)
            )
        return self._drivers[-1]

    def start_second(self) -> None:
        """Start the present command again, while it runs."""
        self._others.append(self._start(self._argv))

    def _accompany(self) -> None:
        """Wait for the end of the driver, and inject what is due; nothing lasts longer than the driver."""
        ends_at, begun_at = time.monotonic() + _DRIVER_S, time.monotonic()
        while self.driver.poll() is None:
            next_s = begun_at + self._events[0].after_s - time.monotonic() if self._events else _DRIVER_S
            try:
                self.driver.wait(max(0, min(next_s, self._ongoing.seconds_left())))
            except subprocess.TimeoutExpired:
                assert time.monotonic() < ends_at, f"a driver did not end within {_DRIVER_S} s\n{self.log_end()}"
                self._ongoing.end_due()
                if self._events and time.monotonic() >= begun_at + self._events[0].after_s:
                    self._inject(self._events.popleft())
                    begun_at = time.monotonic()
        self._ongoing.end_all()

    def _inject(self, event: Event) -> None:
        """One that finds nothing to happen to is tried again after the others."""
        if not self._ongoing.begin(event.fault, self, Random(event.seed)):
            self._events.append(event)

    def _await_others(self) -> None:
        for process in self._others:
            try:
                self._check_code(process.wait(_DRIVER_S))
            except subprocess.TimeoutExpired:
                msg = f"a second driver did not end within {_DRIVER_S} s\n{self.log_end()}"
                raise AssertionError(msg) from None
        self._others.clear()

    def _check_code(self, code: int) -> None:
        assert code in {0, 1, -signal.SIGKILL}, f"exit code {code}\n{self.log_end()}"

    def _count_requests(self) -> None:
        """Add the failed requests since the last count; it starts again when faults are set."""
        for control in self.store.controls:
            counts = control.counts()
            self.counts.update({REQUEST + name: counts[name] for name in self.scenario.requests if counts[name]})

    def log_end(self) -> str:
        """Of what the drivers wrote."""
        return self.log.read_text(errors="replace")[-_SHOWN:] if self.log.exists() else ""
