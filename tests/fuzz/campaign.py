"""Fuzzes targets in child processes, which may hang or die, and collects what they found."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.case import Case, Results
from tests.fuzz.json_changes import OUTSIDE

_STARTED_S = 600.0  # for imports and valid files, and for the last case
_MAX_DEATHS = 200
_SECRET = "not to be read\n"


def fuzz(targets: Sequence[str], root: Path, *, seed: int, cases: int = 10**9, seconds: float = 10**9) -> Results:
    """Run cases of targets.

    Args:
        targets: names.
        root: an empty folder.
        seed: of all changes.
        cases: of each target.
        seconds: of all targets together, without the start.
    """
    for folder in (root / "home", root / "a/b", root / "tmp", Path(OUTSIDE)):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("x.json", "x.parquet", "config.json"):
        (Path(OUTSIDE) / name).write_text(_SECRET)
    results, deaths, end_s = Results(), 0, time.monotonic() + seconds
    while deaths < _MAX_DEATHS:
        left = cases - min((sum(results.counts.get(name, {}).values()) for name in targets), default=0)
        remaining_s = end_s - time.monotonic()
        if left <= 0 or remaining_s <= 0:
            break
        # One process after a death repeats neither the cases of earlier findings nor the changes of the one before.
        code = _run_child(targets, root, f"{seed}" if not deaths else f"{seed}.{deaths}", left, remaining_s)
        if (root / "results").exists():
            results.merge(pickle.loads((root / "results").read_bytes()))
            (root / "results").unlink()
        if (root / "done").exists():
            break
        results.add(*_last_case(root, code))
        deaths += 1
    return results


def _run_child(targets: Sequence[str], root: Path, seed: str, cases: int, seconds: float) -> int:
    for name in ("done", "current", "hang", "results"):
        (root / name).unlink(missing_ok=True)
    environment = os.environ | {
        "HOME": str(root / "home"),
        "TMPDIR": str(root / "tmp"),
        "HF_HOME": str(root / "tmp/hf"),
        "HF_HUB_OFFLINE": "1",
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
    argv = [sys.executable, "-m", "tests.fuzz.child", str(root), seed, str(cases), str(seconds), *targets]
    return subprocess.run(
        argv, env=environment, check=False, timeout=seconds + _STARTED_S if seconds < 10**8 else None
    ).returncode


def _last_case(root: Path, code: int) -> tuple[Case, str, str]:
    """The case that ended a process."""
    log = (root / "log").read_text(errors="replace")[-3000:]
    if not (root / "current").exists():
        msg = f"a process ended before its first case, with code {code}:\n{log}"
        raise RuntimeError(msg)
    case = Case.decode((root / "current").read_text())
    hang = (root / "hang").read_text(errors="replace") if (root / "hang").exists() else ""
    if "Timeout" in hang:
        return case, f"hang of {case.file}", hang[:6000]
    return case, f"death of the process, code {code}, by {case.file}", f"{log}\n{hang}"
