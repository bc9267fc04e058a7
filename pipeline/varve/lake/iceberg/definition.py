"""Creates feature tables in Iceberg, and checks that an existing one is of a definition.

Knows nothing of files. Invariant: a table's key, feature set and source never change; they are table properties.
"""

from collections.abc import Sequence

from pyiceberg.exceptions import CommitFailedException, NoSuchNamespaceError, TableAlreadyExistsError
from pyiceberg.table import Table

from varve.config.table_address import TableAddress
from varve.errors import JobError, RunError
from varve.lake.iceberg.catalog import describe, find_table, load_table, open_catalog
from varve.lake.iceberg.column_types import arrow_schema, iceberg_schema
from varve.lake.iceberg.partition import make_spec, partition_fields
from varve.lake.iceberg.state import FEATURE_SET_PROPERTY, KEY_PROPERTY
from varve.lake.table import Definition, PartitionField

_SOURCE_PROPERTY = "varve.source-uuid"
_MAX_ATTEMPTS = 10
_WRITABLE_VERSION = 2
_ANOTHER = "name another output.table"


def prepare_table(address: TableAddress, definition: Definition) -> None:
    """Create the table unless it exists; add the columns of the definition that it lacks.

    Raises:
        JobError: the existing table is not one of this definition, or the namespace does not exist.
        RunError: the catalog failed.
    """
    iceberg_schema(definition.schema)  # refuses types, whether or not the table exists
    if find_table(address) is None:
        _create(address, definition)
    missing: list[str] = []
    for _ in range(_MAX_ATTEMPTS):
        table = load_table(address)
        _check(address, table, definition)
        missing = [each for each in definition.schema.names if each not in table.schema().column_names]
        if not missing:
            return
        try:
            _add_columns(table, definition, missing)
        except CommitFailedException:  # another commit came first
            continue
    msg = f"{address}: columns {', '.join(missing)} were not added: other commits came first: run the command again"
    raise RunError(msg)


def _create(address: TableAddress, definition: Definition) -> None:
    schema = iceberg_schema(definition.schema)
    properties = {
        "format-version": str(_WRITABLE_VERSION),
        KEY_PROPERTY: definition.key,
        FEATURE_SET_PROPERTY: definition.feature_set,
        _SOURCE_PROPERTY: definition.source_uuid,
    }
    spec = make_spec(definition.partition, schema)
    try:
        open_catalog(address.catalog).create_table(address.name, schema, partition_spec=spec, properties=properties)
    except TableAlreadyExistsError:
        return
    except NoSuchNamespaceError:
        load_table(address)  # raises: names the namespaces
    except Exception as e:
        if find_table(address) is None:
            msg = f"{address}: the table cannot be created: {describe(e, address.catalog)}"
            raise RunError(msg) from e


def _add_columns(table: Table, definition: Definition, names: Sequence[str]) -> None:
    new = iceberg_schema(definition.schema)
    with table.update_schema() as update:
        for name in names:
            update.add_column(name, new.find_type(name))


def _check(address: TableAddress, table: Table, definition: Definition) -> None:
    """Whether the table is one of the definition.

    Raises:
        JobError: it is not.
    """
    if table.format_version > _WRITABLE_VERSION:
        msg = (
            f"output.table: {address} has format version {table.format_version}, which pyiceberg reads but cannot "
            f"write: {_ANOTHER}; a new table gets format version {_WRITABLE_VERSION}"
        )
        raise JobError(msg)
    for name, wanted, what in (
        (KEY_PROPERTY, definition.key, "the key"),
        (FEATURE_SET_PROPERTY, definition.feature_set, "the feature set"),
        (_SOURCE_PROPERTY, definition.source_uuid, "the uuid of the source table"),
    ):
        stored = table.properties.get(name)
        if stored is None:
            msg = f"output.table: {address} exists and is no feature table of Varve (no property {name}): {_ANOTHER}"
            raise JobError(msg)
        if stored != wanted:
            msg = f"output.table: {address} has another value for {what}: {stored}, expected {wanted}: {_ANOTHER}"
            raise JobError(msg)
    _check_partition(address, table, definition.partition)
    _check_types(address, table, definition)


def _check_partition(address: TableAddress, table: Table, wanted: Sequence[PartitionField]) -> None:
    stored = partition_fields(table.spec(), table.schema(), table.schema())
    if [(each.column, each.transform) for each in stored] != [(each.column, each.transform) for each in wanted]:
        msg = f"output.table: {address} is partitioned by {_shown(stored)}, expected {_shown(wanted)}: {_ANOTHER}"
        raise JobError(msg)


def _check_types(address: TableAddress, table: Table, definition: Definition) -> None:
    stored, wanted = arrow_schema(table.schema()), arrow_schema(iceberg_schema(definition.schema))
    for column in wanted:
        index = stored.get_field_index(column.name)
        if index >= 0 and stored.field(index).type != column.type:
            msg = (
                f"output.table: column {column.name!r} of {address} has type {stored.field(index).type}, "
                f"expected {column.type}: {_ANOTHER}"
            )
            raise JobError(msg)


def _shown(fields: Sequence[PartitionField]) -> str:
    return ", ".join(f"{each.transform}({each.column})" for each in fields) or "nothing"
