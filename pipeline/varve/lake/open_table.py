"""Opens a table by its address; the library of its format is imported only then."""

from importlib.util import find_spec
from typing import cast

from varve.config.table_address import TableAddress
from varve.errors import JobError
from varve.lake.table import FeatureTable, Table

_EXTRAS = {"iceberg": "pyiceberg", "delta": "deltalake", "lance": "lance"}


def open_table(address: TableAddress) -> Table:
    """The table at an address; whether it exists is found out later.

    Raises:
        JobError: the extra of its format is not installed.
    """
    if find_spec(_EXTRAS[address.format]) is None:
        msg = f"{address}: run pip install '.[{address.format}]' in Varve's folder"
        raise JobError(msg)
    if address.format == "iceberg":
        from varve.lake.iceberg.iceberg_table import IcebergTable  # noqa: PLC0415 (imports pyiceberg)

        return IcebergTable(address)
    if address.format == "delta":
        from varve.lake.delta.delta_table import DeltaTable  # noqa: PLC0415 (imports deltalake)

        return DeltaTable(address)
    from varve.lake.lance.lance_table import LanceTable  # noqa: PLC0415 (imports lance)

    return LanceTable(address)


def open_feature_table(address: TableAddress) -> FeatureTable:
    """The table of features at an address.

    Raises:
        JobError: the extra of its format is not installed, or the format has its features in the source's own table.
    """
    if address.format == "lance":
        msg = f"output.table: {address}: features of a Lance table are columns of the source table: name the source"
        raise JobError(msg)
    return cast("FeatureTable", open_table(address))
