"""Fuzzes targets in child processes, which may hang or die, and collects what they found."""

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.case import Results
from tests.fuzz.child_end import memory_kills, read_end
from tests.fuzz.json_changes import OUTSIDE
from tests.fuzz.watch import CACHES

_STARTED_S = 600.0  # for imports and valid files, and for the last case
_LOOK_S = 5.0
_MAX_DEATHS = 200
_SECRET = "not to be read\n"
_LEFT = ("done", "current", "stack", "results", "log")  # by the process before


def fuzz(
    targets: Sequence[str],
    root: Path,
    *,
    seed: int,
    cases: int = 10**9,
    seconds: float = 10**9,
    look: Callable[[Results], None] = lambda _results: None,
) -> Results:
    """Run cases of targets.

    Args:
        targets: names; none: all.
        root: an empty folder.
        seed: of all changes.
        cases: of each target.
        seconds: of all targets together, without the start.
        look: called every few seconds with what was found up to then.
    """
    _prepare(root)
    results, deaths, end_s = Results(), 0, time.monotonic() + seconds
    while deaths < _MAX_DEATHS:
        left = cases - min((sum(counts.values()) for counts in results.counts.values()), default=0)
        remaining_s = end_s - time.monotonic()
        if left <= 0 or remaining_s <= 0:
            break
        # One process after a death repeats neither the cases of earlier findings nor the changes of the one before.
        argv = [str(root), f"{seed}" if not deaths else f"{seed}.{deaths}", str(left), str(remaining_s), *targets]
        kills = memory_kills()
        code = _run_child(root, argv, remaining_s, lambda: look(results.merged(_read_results(root))))
        results.merge(_read_results(root))
        if (root / "done").exists():
            break
        end = read_end(root, code, kills_before=kills)
        results.add(end.case, end.reason, end.details)
        look(results)
        deaths += 1
    return results


def _prepare(root: Path) -> None:
    """Make the folders; `home` is where programs start, and may not be changed."""
    for folder in (root / "home", root / "a/b", root / f"tmp/{CACHES}/hf", Path(OUTSIDE)):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "home").chmod(0o555)
    for name in ("x.json", "x.parquet", "config.json"):
        (Path(OUTSIDE) / name).write_text(_SECRET)


def _run_child(root: Path, argv: Sequence[str], seconds: float, look: Callable[[], None]) -> int | None:
    """The exit code of a process; None if it did not end by itself."""
    for name in _LEFT:
        (root / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.child", *argv]
    end_s = time.monotonic() + seconds + _STARTED_S
    with subprocess.Popen(command, env=os.environ | _environment(root)) as child:
        try:
            while time.monotonic() < end_s:
                try:
                    return child.wait(_LOOK_S)
                except subprocess.TimeoutExpired:
                    look()
            return None
        finally:
            child.kill()


def _environment(root: Path) -> dict[str, str]:
    """No credentials, no servers but that of this process's answers (see `answering_server`), one thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "XDG_CACHE_HOME": str(root / f"tmp/{CACHES}"),
        "HF_HOME": str(root / f"tmp/{CACHES}/hf"),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ALLOW_HTTP": "true",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def _read_results(root: Path) -> Results:
    path = root / "results"
    return pickle.loads(path.read_bytes()) if path.exists() else Results()
