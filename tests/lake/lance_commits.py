"""What a test looks at in a Lance dataset: data files, and the commits of runs."""

import hashlib
from pathlib import Path

from tests.lake.backend_lance import Backend


def counts(new: int, changed: int, unchanged: int) -> dict[str, int]:
    return {"new": new, "changed": changed, "unchanged": unchanged, "removed": 0}


def data_files(docs: Backend) -> dict[str, str]:
    folder = Path(docs.uri) / "data"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def commits_of_runs(docs: Backend) -> list[str]:
    """Operations of the commits that a run made, without those of the state alone."""
    found = []
    for version in range(1, docs.open().version + 1):
        transaction = docs.open().read_transaction(version)
        if transaction and "varve.run" in (transaction.transaction_properties or {}):
            found.append(type(transaction.operation).__name__)
    return [name for name in found if name != "UpdateConfig"]
