"""How a process of a campaign ended, and the case that it ran.

The process writes each case to `current` before it runs it, so a case is known whatever ends the process. Knows nothing
of targets. Invariant: an end is never without a case and a reason, except before the first case.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.case import Case

_SHOWN = 6000  # characters of a log or a stack
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|[Cc]annot allocate memory|out of memory|allocation of \d+ bytes failed"
)
_STATISTICS = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """The end of a process.

    Attributes:
        case: what it ran.
        reason: signal, exit code or limit.
        details: what it wrote, and its stack.
    """

    case: Case
    reason: str
    details: str


def read_end(root: Path, code: int | None, *, kills_before: int) -> ChildEnd:
    """How the last process ended.

    Args:
        root: folder of the campaign.
        code: exit code, negative for a signal; None if the campaign had to end it.
        kills_before: `memory_kills` before it was started.

    Raises:
        RuntimeError: it ran no case.
    """
    log, stack = (_read(root / name) for name in ("log", "stack"))
    current = read_case(root / "current")
    if current is None:
        msg = f"a process ended before its first case: {describe(code, log, stack, 0)}\n{log}{stack}"
        raise RuntimeError(msg)
    reason = describe(code, log, stack, memory_kills() - kills_before)
    return ChildEnd(current, f"{reason} by {current.file}", f"{log}\n{stack}".strip())


def describe(code: int | None, log: str, stack: str, kills: int) -> str:
    """The reason of an end as text."""
    if code is None:
        return "hang between two cases"
    if "Timeout" in stack:
        return "hang"
    memory = ", out of the memory that it was allowed" if _OUT_OF_MEMORY.search(log) else ""
    if code >= 0:
        return f"end of the process with exit code {code}{memory}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    if -code == signal.SIGKILL:
        memory = ", by the kernel for its memory" if kills > 0 else ", by another process"
    return f"end of the process by {name}{memory}"


def write_case(path: Path, case: Case) -> None:
    """Write a case over the one before it."""
    content = case.encode().encode()
    with path.open("r+b" if path.exists() else "w+b") as file:  # a file that is cut to nothing first costs a disk write
        file.write(b"%12d\n" % len(content) + content)


def read_case(path: Path) -> Case | None:
    """The case of `write_case`; None if there is none."""
    if not path.exists():
        return None
    length, _, content = path.read_bytes().partition(b"\n")
    return Case.decode(content[: int(length)].decode())


def memory_kills() -> int:
    """Processes that the kernel has ended for their memory."""
    found = re.search(r"^oom_kill (\d+)", _STATISTICS.read_text(), re.MULTILINE) if _STATISTICS.exists() else None
    return int(found[1]) if found else 0


def _read(path: Path) -> str:
    return path.read_text(errors="replace")[-_SHOWN:] if path.exists() else ""
