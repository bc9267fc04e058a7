"""A process of a campaign: `python -m tests.fuzz.child ROOT SEED CASES SECONDS TARGET ...` runs cases of targets.

It writes `current` before each case, and `results` and `kept` (cases that reached new lines, for the process after it)
every few seconds, so that little is lost if a case ends the process.
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import FINE, Case, Results, found_cases
from tests.fuzz.child_end import write_case
from tests.fuzz.executor import Executor, end_process, keep_stacks, limit_address_space, now_s
from tests.fuzz.line_coverage import EVERY
from tests.fuzz.mutator import mutate
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Watch

_TURN_S = 2.0  # of a target, before the next one has its turn
_WRITTEN_S = 5.0
_KEPT_SHARE = 0.5  # of cases that start from an earlier one which reached new lines
_MAX_KEPT_BYTES, _MAX_KEPT = 200_000, 60  # of a file


class Fuzzer:
    """Cases of one target: earlier findings, then changes of valid files and of cases that reached new code."""

    def __init__(self, target: Target, root: Path, watch: Watch, random: Random) -> None:
        """Make the valid files and check that they are accepted."""
        self._executor, self._random, self.name = Executor(target, root, watch), random, target.name
        self.kept: dict[str, list[bytes]] = {name: [] for name in self._executor.valid}
        self.results, self._current = Results(), root / "current"
        firsts = {name.split("/")[0]: name for name in self._executor.valid}  # readers read one of these as a whole
        for name in firsts.values():
            content = self._executor.valid[name]
            outcome, details = self._executor.run(Case(target.name, name, content), self._save)
            if outcome != "accepted":
                self._current.unlink()
                sys.exit(f"{target.name}: the valid {name} is not accepted: {outcome}: {details}")

    def replay(self) -> None:
        """Run the cases of earlier findings."""
        for name, case in found_cases(self.name).items():
            self.results.replayed[name] = "the target has no such file"
            if case.file in self._executor.valid:
                self.results.replayed[name] = self._run(case, every=1)

    def go_on(self, kept: dict[str, list[bytes]]) -> None:
        """Run the cases that the process before this one has kept."""
        for name, contents in kept.items():
            for content in contents:
                self._run(Case(self.name, name, content), every=1)

    def run_one(self) -> None:
        """Change a file and run the case."""
        name = self._random.choice(list(self._executor.valid))
        valid, kept = self._executor.valid[name], self.kept[name]
        base = self._random.choice(kept) if kept and self._random.random() < _KEPT_SHARE else valid
        self._run(Case(self.name, name, mutate(self._random, name, base, kept)), every=EVERY)

    def _run(self, case: Case, *, every: int) -> str:
        begun_s = now_s()
        outcome, details = self._executor.run(case, self._save, every=every)
        self.results.add(case, outcome, details)
        results, kept = self.results, self.kept[case.file]
        results.peak_mb[self.name] = max(results.peak_mb.get(self.name, 0), self._executor.extra_mb)
        results.seconds[self.name] = results.seconds.get(self.name, 0.0) + now_s() - begun_s
        if self._executor.coverage.is_new and len(case.content) < _MAX_KEPT_BYTES and outcome in FINE:
            kept.append(case.content)
            del kept[:-_MAX_KEPT]
        return outcome

    def _save(self, case: Case) -> None:
        write_case(self._current, case)


def _turns(fuzzers: list[Fuzzer], cases: int, seconds: float) -> Iterator[None]:
    """Run cases of all targets in turns until one of the limits is reached."""
    end_s, left = now_s() + seconds, {fuzzer.name: cases for fuzzer in fuzzers}
    while any(left.values()) and now_s() < end_s:
        for fuzzer in fuzzers:
            turn_s = min(now_s() + min(_TURN_S, seconds / 2 / len(fuzzers)), end_s)
            while left[fuzzer.name]:  # at least one case, however slow the machine is
                fuzzer.run_one()
                left[fuzzer.name] -= 1
                yield
                if now_s() >= turn_s:
                    break


def main() -> None:
    """Run the cases."""
    root, seed, cases, seconds, *names = sys.argv[1:]
    folder = Path(root)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep_stacks(folder / "stack")
    os.chdir(folder / "home")
    if unknown := sorted({*names} - {*TARGETS}):
        sys.exit(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    watch = Watch(folder)
    fuzzers = [Fuzzer(TARGETS[name], folder, watch, Random(f"{seed} {name}")) for name in names or TARGETS]
    limit_address_space()
    kept = pickle.loads((folder / "kept").read_bytes()) if (folder / "kept").exists() else {}
    for fuzzer in fuzzers:
        if seed.isdigit():  # a process that follows one which died does not repeat them
            fuzzer.replay()
        fuzzer.go_on(kept.get(fuzzer.name, {}))
    write = _writer(folder, fuzzers)
    for _ in _turns(fuzzers, int(cases), float(seconds)):
        write(_WRITTEN_S)
    write(0)
    (folder / "done").touch()
    end_process(0)


def _writer(folder: Path, fuzzers: list[Fuzzer]) -> Callable[[float], None]:
    """Writes what was found if the last time is so many seconds ago."""
    last_s = 0.0

    def write(every_s: float) -> None:
        nonlocal last_s
        if now_s() - last_s < every_s:
            return
        last_s = now_s()
        merged = Results()
        for fuzzer in fuzzers:
            merged.merge(fuzzer.results)
        _replace(folder / "kept", {fuzzer.name: fuzzer.kept for fuzzer in fuzzers})
        _replace(folder / "results", merged)

    return write


def _replace(path: Path, content: Any) -> None:
    path.with_suffix(".new").write_bytes(pickle.dumps(content))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main()
