"""Inject faults at random into random jobs, and compare each result with an undisturbed run.

python -m tests.faults.chaos --faults 1000       # until so many faults
python -m tests.faults.chaos --minutes 30 --kind folder --kind iceberg --store disk
python -m tests.faults.chaos --seed 17           # one scenario again

Prints one line for each scenario and tables of the faults at the end; exits with 1 if a comparison failed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from tests.faults.chaos import namespace
from tests.faults.chaos.clock import compile_clock
from tests.faults.chaos.faults import FAULTS, Machine
from tests.faults.chaos.kinds import KINDS
from tests.faults.chaos.kinds.corpus import Corpus
from tests.faults.chaos.kinds.kind import Inputs
from tests.faults.chaos.leftovers import Leftovers, adopt_orphans
from tests.faults.chaos.ray_cluster import RayCluster
from tests.faults.chaos.scenario import Scenario, draw_scenario
from tests.faults.chaos.stores import NAMES, Stores, missing
from tests.faults.chaos.summary import Summary
from tests.faults.chaos.trial import Trial

_MINUTES = 10
_RAYS: tuple[str, ...] = ("local", "cluster")


def main() -> int:
    arguments = _parse()
    has_namespace = namespace.enter(sys.argv[1:])
    stores = [name for name in arguments.store or NAMES if not _say_missing(name)]
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name, ExitStack() as running:
        warnings.filterwarnings("ignore")  # Lance's, of forks: servers are started by them
        os.environ.update(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
        folder = Path(name)
        machine = Machine(has_namespace, compile_clock(folder))
        _say_skipped(machine)
        if has_namespace:
            namespace.mount(namespace.SHM, namespace.SHM_BYTES)
            namespace.mount(folder / "disk", namespace.DISK_BYTES)
            running.callback(namespace.unmount, folder / "disk")
        (folder / "disk").mkdir(exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is ended and removed
        adopt_orphans()
        running.callback(Leftovers().kill)
        return Chaos(running, folder, machine, arguments).run(arguments, stores)


class Chaos:
    """Runs scenarios and counts their faults."""

    def __init__(self, running: ExitStack, folder: Path, machine: Machine, arguments: argparse.Namespace) -> None:
        self._folder, self._machine, self._logs = folder, machine, arguments.logs
        self._stores = Stores(running, folder, folder / "disk")
        self._cluster = RayCluster(folder / "ray")
        running.callback(self._cluster.end)
        (folder / "inputs").mkdir()
        self._inputs = Inputs(folder / "inputs", Corpus())
        self._summary = Summary(arguments.counts)
        self._num_faults = 0  # those at a moment; failed requests are not counted
        self._failures: list[Scenario] = []

    def run(self, arguments: argparse.Namespace, stores: list[str]) -> int:
        """Run scenarios of consecutive seeds until there are enough; returns the exit code."""
        began = time.monotonic()
        is_single = arguments.faults is None and arguments.minutes is None and arguments.seed is not None
        minutes = _MINUTES if arguments.faults is None and arguments.minutes is None else arguments.minutes
        rays = [arguments.ray] if arguments.ray else [*_RAYS]
        for seed in count(arguments.seed or 0):
            self._try(draw_scenario(seed, self._machine, arguments.kind or list(KINDS), stores, rays))
            is_late = minutes is not None and time.monotonic() - began >= minutes * 60
            if is_single or is_late or (arguments.faults and self._num_faults >= arguments.faults):
                break
        self._say_end(time.monotonic() - began)
        return 1 if self._failures else 0

    def _try(self, scenario: Scenario) -> None:
        folder, began = self._folder / f"seed-{scenario.seed}", time.monotonic()
        folder.mkdir()
        if not scenario.setting.has_cluster:
            self._cluster.end()
        store = self._stores.open(scenario.setting.store)
        trial, result = Trial(scenario, self._machine, store, self._cluster, folder), "equal"
        try:
            trial.run(self._inputs)
        except Exception as error:  # noqa: BLE001 (of a library too: the next scenario runs)
            shown = str(error) if isinstance(error, AssertionError) and str(error) else traceback.format_exc()
            result = f"FAILED: {shown}\n  {scenario.command}"
            self._failures.append(scenario)
            if self._logs and trial.log.exists():
                self._logs.mkdir(exist_ok=True)
                shutil.copy(trial.log, self._logs / f"seed-{scenario.seed}.log")
        self._summary.add(scenario, trial.counts)
        shutil.rmtree(folder, ignore_errors=True)
        injected = {name: number for name, number in sorted(trial.counts.items()) if name in FAULTS}
        self._num_faults += sum(injected.values())
        shown = ", ".join(f"{number} {name}" for name, number in injected.items()) or "no fault"
        _say(f"{scenario}: {shown}; {trial.starts} start(s), {time.monotonic() - began:.0f} s: {result}")

    def _say_end(self, seconds: float) -> None:
        _say(f"\n{self._num_faults:,} faults in {seconds:.0f} s\n")
        for line in self._summary.lines():
            _say(line)
        for scenario in self._failures:
            _say(f"FAILED: {scenario.command}")
        if not self._failures:
            _say("0 rows lost, 0 doubled, every value equal to the undisturbed run")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, help="stop after so many")
    parser.add_argument("--minutes", type=float, help=f"stop after so many (default: {_MINUTES})")
    parser.add_argument("--seed", type=int, help="of the first scenario; without --faults and --minutes: the only one")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="of job (default: all)")
    parser.add_argument("--store", action="append", choices=NAMES, help="(default: all)")
    parser.add_argument(
        "--ray", choices=_RAYS, help="a Ray of the job's own, or a cluster of two nodes (default: both)"
    )
    parser.add_argument("--counts", type=Path, help="file of counts: the tables add what earlier commands have counted")
    parser.add_argument("--logs", type=Path, help="folder that keeps the drivers' output of failed scenarios")
    return parser.parse_args()


def _say_missing(name: str) -> str | None:
    if reason := missing(name):
        _say(f"left out: {name}: {reason}")
    return reason


def _say_skipped(machine: Machine) -> None:
    if not machine.has_namespace:
        _say("left out: disk full, /dev/shm full: only root may mount small file systems, with `unshare`")
    if machine.clock is None:
        _say("left out: clock jumped: there is no C compiler (cc)")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
