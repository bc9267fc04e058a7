"""Runs cases of one target in this process and tells what became of each: accepted, refused, or a finding.

A case that hangs or crashes ends the process with the stack of each thread in `stack`; `child_end` reads it.
"""

import faulthandler
import os
import pickle
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import varve
from tests.fuzz.case import Case
from tests.fuzz.line_coverage import LineCoverage
from tests.fuzz.target import Target
from tests.fuzz.watch import Watch
from varve.errors import VarveError, one_line

MAX_MESSAGE = 6000  # characters
_MAX_FRAMES = 15
_PACKAGE = str(Path(varve.__file__).parent)
_MB = 2**20
_ADDRESS_SPACE = 6 * 2**30


class Executor:
    """The folder of one target, whole between two cases."""

    def __init__(self, target: Target, root: Path, watch: Watch) -> None:
        """Make the valid files; those of an earlier process are written again, as its last case may have ended it."""
        self.target, self._watch, self._root = target, watch, root
        # Targets with the same valid files share them: each leaves them as they were.
        place = f"{target.make.__module__.rpartition('.')[2]}{target.make.__name__}"
        self.folder, made = root / "a/b" / place, root / f"{place}.made"
        if made.exists():
            self._stats, self._whole = pickle.loads(made.read_bytes())
            self._restore()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            target.make(self.folder)
            self._stats = _stats(self.folder)
            self._whole = {path: Path(path).read_bytes() for path, found in self._stats.items() if found}
            made.write_bytes(pickle.dumps((self._stats, self._whole)))
        self.valid = {name: self._whole[str(self.folder / name)] for name in target.changed_files(self.folder)}
        self.coverage = LineCoverage(_PACKAGE)
        self.extra_mb = 0  # memory of the last case

    def run(self, case: Case, save: Callable[[Case], None], *, every: int = 1) -> tuple[str, str]:
        """(accepted, refused or what is wrong, details) of a case.

        Args:
            case: what to run.
            save: called first: the case may end the process.
            every: one of so many cases is traced.
        """
        save(case)
        (self.folder / case.file).write_bytes(case.content)
        _reset_peak()
        before = _memory_mb("VmRSS")
        with _limited(self.target.hang_s * _busy()), self.coverage.case(every=every):
            outcome, details = self._outcome(case)
        self.extra_mb = _memory_mb("VmHWM") - before
        if self.extra_mb > self.target.memory_mb and outcome in {"accepted", "refused"}:
            outcome, details = f"memory of {case.file}", f"{self.extra_mb} MB more than before"
        self._restore()
        return outcome, details

    def _outcome(self, case: Case) -> tuple[str, str]:
        with self._watch.case(self.folder, confined=self.target.confined) as events:
            try:
                self.target.read(self.folder, case.file)
                outcome, details = "accepted", ""
            except VarveError as e:
                outcome, details = "refused", str(e)
                if len(details) > MAX_MESSAGE:
                    outcome = f"message of more than {MAX_MESSAGE} characters from {_place(e)}"
            except BaseException as e:  # noqa: BLE001 (what is looked for)
                outcome, details = f"{type(e).__name__} in {_place(e)}", _describe(e)
        if events:
            what, _, _ = events[0].partition(":")
            return f"{what} of {case.file}", "\n".join(events[:20])
        return outcome, details

    def _restore(self) -> None:
        """Remove new files, and write those again that are missing or changed."""
        found = _stats(self.folder)
        for path in sorted(found.keys() - self._stats.keys(), reverse=True):
            Path(path).rmdir() if found[path] is None else Path(path).unlink(missing_ok=True)
        for path, content in self._whole.items():
            if found.get(path) != self._stats[path]:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(content)
                self._stats[path] = _stat(path)


def _stats(folder: Path) -> dict[str, tuple[int, int] | None]:
    """(time of the last change, size) of each file, None for a folder."""
    found: dict[str, tuple[int, int] | None] = {}
    for root, folders, files in os.walk(folder):
        found |= {f"{root}/{name}": None for name in folders}
        found |= {f"{root}/{name}": _stat(f"{root}/{name}") for name in files}
    return found


def _stat(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_mtime_ns, found.st_size


def _place(error: BaseException) -> str:
    """The last function of the package that an error passed, or the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(_PACKAGE)] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"


def _describe(error: BaseException) -> str:
    """The message of an error, and the functions that it passed, with those of libraries at the end."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(_PACKAGE)][:_MAX_FRAMES]
    shown = [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in [*own, *frames[-3:]]]
    return "\n".join([*shown, one_line(f"{type(error).__name__}: {error}")])


_stacks: TextIO | None = None


def keep_stacks(path: Path) -> None:
    """Write the stacks of a process that hangs or crashes to a file."""
    global _stacks  # noqa: PLW0603 (of a process, as faulthandler is)
    _stacks = path.open("w")
    faulthandler.enable(_stacks)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    assert _stacks
    faulthandler.dump_traceback_later(seconds, exit=True, file=_stacks)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _busy() -> float:
    """How many times as long a case may take on a machine with this load."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def limit_address_space() -> None:
    """Let allocations fail that would take the memory of the machine."""
    used = _memory_mb("VmSize") * _MB
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, hard))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:"))) // 1024


def now_s() -> float:
    """Seconds of a clock that does not jump."""
    return time.monotonic()


def end_process(code: int) -> None:
    """End without teardown, in which threads of libraries may wait."""
    os._exit(code)
