"""Whether the records of a run can be read afterwards: its histories, and its report."""

from pathlib import Path

from varve.monitoring.run_history import HISTORY_FOLDER, read_histories
from varve.storage.object_store import Storage


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
        AssertionError: it is not whole.
        JobError: it cannot be written.
    """
    from varve.cli.report_page import write_page

    page = folder / "report.html"
    write_page(path, file=str(page), seed=0, color=None, price_per_hour=None)
    assert "</html>" in page.read_text(), f"{page} is not whole"
