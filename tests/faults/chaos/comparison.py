"""Whether the records of a run can be read afterwards: its histories, and its report."""

import subprocess
from pathlib import Path

from varve.monitoring.run_history import HISTORY_FOLDER, read_histories
from varve.storage.object_store import Storage

_REPORT_S = 300


def check_history(storage: Storage) -> None:
    """Read all histories of an output.

    Raises:
        AssertionError: there is none, or one cannot be read.
    """
    listed = [entry.name for entry in storage.list(HISTORY_FOLDER) if entry.name.endswith(".json")]
    assert listed, f"{storage.uri} has no history"
    assert len(read_histories(storage)) == len(listed), f"a history of {storage.uri} cannot be read"


def check_report(path: str, folder: Path) -> None:
    """Write the page of an output.

    Raises:
        AssertionError: the command fails.
    """
    from tests.faults.chaos.kinds.kind import varve

    page = folder / "report.html"
    argv = varve("report", path, "--output", str(page))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_REPORT_S)
    assert done.returncode == 0, f"varve report {path}: exit code {done.returncode}\n{done.stderr[-2000:]}"
    assert "</html>" in page.read_text(), f"{page} is not whole"
