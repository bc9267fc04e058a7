"""Columns that a run adds to a Delta table of texts. Their metadata name the feature set.

Knows nothing of rows. Invariant: drivers that add the same columns at once end with one of each.
"""

import pyarrow as pa
from deltalake import CommitProperties, Schema
from deltalake.exceptions import DeltaError

from varve.lake.delta.column_types import stored_schema
from varve.lake.delta.log import library_errors, open_version, retried

_KEY = "varve.feature_set"
_ONE_TRY = CommitProperties(max_commit_retries=0)


def column_owners(name: str) -> dict[str, str | None]:
    """Column → the feature set that it belongs to; None for a column of another program."""
    return {field.name: field.metadata.get(_KEY) for field in open_version(name).schema().fields}


def add_columns(name: str, columns: pa.Schema, feature_set: str) -> None:
    """Add the columns that the table lacks, by one commit: delta-rs ignores them in a commit of data.

    Raises:
        JobError: Delta has no such type.
        RunError: the store failed.
    """
    marked = [field.with_metadata({_KEY: feature_set}) for field in stored_schema(columns, name)]
    with library_errors(name, "changed"):
        try:
            retried(lambda: _add_missing(name, marked))
        except (DeltaError, OSError):
            _add_missing(name, marked)  # another commit came first, perhaps of another driver


def _add_missing(name: str, columns: list[pa.Field]) -> None:
    version = open_version(name)
    stored = {field.name for field in version.schema().fields}
    if missing := [field for field in columns if field.name not in stored]:
        version.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields, commit_properties=_ONE_TRY)
