"""A process of a campaign: `python -m tests.fuzz.child ROOT SEED CASES SECONDS TARGET ...` runs cases of targets.

It writes `results` after each case, and `current` before it, so that nothing is lost if a case ends the process.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.fuzz.case import FINE, Case, Results, found_cases
from tests.fuzz.executor import Executor, end_process, limit_address_space, now_s
from tests.fuzz.mutator import mutate
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Watch

_TURN_S = 2.0  # of a target, before the next one has its turn
_KEPT_SHARE = 0.5  # of cases that start from an earlier one which reached new lines
_MAX_KEPT_BYTES = 200_000


class Fuzzer:
    """Cases of one target: earlier findings, then changes of valid files and of cases that reached new code."""

    def __init__(self, target: Target, root: Path, watch: Watch, random: Random) -> None:
        """Make the valid files and check that they are accepted."""
        self._executor, self._random, self.name = Executor(target, root, watch), random, target.name
        self._kept: dict[str, list[bytes]] = {name: [] for name in self._executor.valid}
        self.results, self._root = Results(), root
        firsts = {name.split("/")[0]: name for name in self._executor.valid}  # readers read one of these as a whole
        for name in firsts.values():
            content = self._executor.valid[name]
            outcome, details = self._executor.run(Case(target.name, name, content))
            if outcome != "accepted":
                sys.exit(f"{target.name}: the valid {name} is not accepted: {outcome}: {details}")

    def replay(self) -> None:
        """Run the cases of earlier findings."""
        for name, case in found_cases(self.name).items():
            self.results.replayed[name] = "the target has no such file"
            if case.file in self._executor.valid:
                self._run(case)
                self.results.replayed[name] = self._last

    def run_one(self) -> None:
        """Change a file and run the case."""
        name = self._random.choice(list(self._executor.valid))
        valid, kept = self._executor.valid[name], self._kept[name]
        base = self._random.choice(kept) if kept and self._random.random() < _KEPT_SHARE else valid
        case = Case(self.name, name, mutate(self._random, name, base, kept))
        self._run(case)
        if self._executor.is_new and len(case.content) < _MAX_KEPT_BYTES and self._last in FINE:
            kept.append(case.content)

    def _run(self, case: Case) -> None:
        begun_s = now_s()
        self._last, details = self._executor.run(case, self._save)
        self.results.add(case, self._last, details)
        results = self.results
        results.peak_mb[self.name] = max(results.peak_mb.get(self.name, 0), self._executor.extra_mb)
        results.seconds[self.name] = results.seconds.get(self.name, 0.0) + now_s() - begun_s

    def _save(self, case: Case) -> None:
        (self._root / "current").write_text(case.encode())


def _turns(fuzzers: list[Fuzzer], cases: int, seconds: float) -> Iterator[None]:
    """Run cases of all targets in turns until one of the limits is reached."""
    end_s, left = now_s() + seconds, {fuzzer.name: cases for fuzzer in fuzzers}
    while any(left.values()) and now_s() < end_s:
        for fuzzer in fuzzers:
            turn_s = min(now_s() + min(_TURN_S, seconds / 2 / len(fuzzers)), end_s)
            while left[fuzzer.name] and now_s() < turn_s:
                fuzzer.run_one()
                left[fuzzer.name] -= 1
                yield


def main() -> None:
    """Run the cases."""
    root, seed, cases, seconds, *names = sys.argv[1:]
    folder = Path(root)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder / "home")
    watch = Watch(folder)
    fuzzers = [Fuzzer(TARGETS[name], folder, watch, Random(f"{seed} {name}")) for name in names]
    limit_address_space()
    for fuzzer in fuzzers:
        if seed.isdigit():  # a process that follows one which died does not repeat them
            fuzzer.replay()
    _write(folder, fuzzers)
    for number, _ in enumerate(_turns(fuzzers, int(cases), float(seconds))):
        if number % 20 == 0:
            _write(folder, fuzzers)
    _write(folder, fuzzers)
    (folder / "done").touch()
    end_process(0)


def _write(folder: Path, fuzzers: list[Fuzzer]) -> None:
    merged = Results()
    for fuzzer in fuzzers:
        merged.merge(fuzzer.results)
    (folder / "results.new").write_bytes(pickle.dumps(merged))
    (folder / "results.new").replace(folder / "results")


if __name__ == "__main__":
    main()
