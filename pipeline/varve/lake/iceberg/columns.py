"""Columns that a run adds to an Iceberg table of texts. Their documentation names the feature set.

Knows nothing of rows. Invariant: drivers that add the same columns at once end with one of each.
"""

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException

from varve.config.table_address import TableAddress
from varve.errors import RunError
from varve.lake.iceberg.catalog import describe, forget_table, load_table
from varve.lake.iceberg.column_types import iceberg_schema

_PREFIX = "varve feature set "
_MAX_ATTEMPTS = 10


def column_owners(address: TableAddress) -> dict[str, str | None]:
    """Column → the feature set that it belongs to; None for a column of another program."""
    return {field.name: _owner(field.doc) for field in load_table(address).schema().fields}


def _owner(doc: str | None) -> str | None:
    return doc.removeprefix(_PREFIX) if doc and doc.startswith(_PREFIX) else None


def add_columns(address: TableAddress, columns: pa.Schema, feature_set: str) -> None:
    """Add the columns that the table lacks, by one commit.

    Raises:
        JobError: Iceberg has no such type.
        RunError: the catalog failed, or other commits came first each time.
    """
    new = iceberg_schema(columns)
    for _ in range(_MAX_ATTEMPTS):
        table = load_table(address)
        missing = [name for name in columns.names if name not in table.schema().column_names]
        if not missing:
            return
        try:
            with table.update_schema() as update:
                for name in missing:
                    update.add_column(name, new.find_type(name), doc=f"{_PREFIX}{feature_set}")
        except CommitFailedException:
            continue
        except Exception as e:
            msg = f"{address}: columns cannot be added: {describe(e, address.catalog)}"
            raise RunError(msg) from e
        finally:
            forget_table(address)
    msg = f"{address}: columns were not added: other commits came first {_MAX_ATTEMPTS} times. Run the command again"
    raise RunError(msg)
