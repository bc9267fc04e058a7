"""Columns of features in the Iceberg or Delta table that has the texts: which feature set each is of, and adding them.

Knows nothing of rows. Invariant: only columns with the mark of a feature set are ever written.
"""

import pyarrow as pa

from varve.config.table_address import TableAddress


def column_owners(address: TableAddress) -> dict[str, str | None]:
    """Column → SHA-256 of the feature set that it belongs to; None for a column of another program.

    Raises:
        JobError: there is no table.
        RunError: it cannot be read.
    """
    if address.format == "iceberg":
        from varve.lake.iceberg import columns as iceberg_columns  # noqa: PLC0415 (imports pyiceberg)

        return iceberg_columns.column_owners(address)
    from varve.lake.delta import columns as delta_columns  # noqa: PLC0415 (imports deltalake)

    return delta_columns.column_owners(address.name)


def add_columns(address: TableAddress, columns: pa.Schema, feature_set: str) -> None:
    """Add the columns that the table lacks, with the mark of a feature set. All rows have null.

    Args:
        address: of the table.
        columns: names and types; all may be null.
        feature_set: SHA-256.

    Raises:
        JobError: the format has no such type.
        RunError: the catalog or store failed.
    """
    if address.format == "iceberg":
        from varve.lake.iceberg import columns as iceberg_columns  # noqa: PLC0415 (imports pyiceberg)

        iceberg_columns.add_columns(address, columns, feature_set)
        return
    from varve.lake.delta import columns as delta_columns  # noqa: PLC0415 (imports deltalake)

    delta_columns.add_columns(address.name, columns, feature_set)
