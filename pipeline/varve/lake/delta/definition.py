"""Creates a Delta table of features, and checks that an existing one is of the same definition.

The definition is recorded as metadata of the column text_hash: Delta refuses table properties that it does not know,
and comments on the table are for people. Invariant: drivers that create the table at once end with one table.
"""

import pyarrow as pa
from deltalake import CommitProperties, Schema
from deltalake import DeltaTable as DeltaVersion
from deltalake.exceptions import DeltaError

from varve.config.source import TEXT_HASH
from varve.errors import JobError
from varve.lake.delta.column_types import plain_schema, stored_schema
from varve.lake.delta.log import find_version, library_errors, open_version, retried, storage_options
from varve.lake.table import Definition

_KEY, _FEATURE_SET, _SOURCE = "varve.key", "varve.feature_set", "varve.source_uuid"
# A retry would write the table's metadata again, as another version, over the table of another driver.
_ONE_TRY = CommitProperties(max_commit_retries=0)
_STATISTICS = "delta.dataSkippingStatsColumns"


def prepare_table(name: str, definition: Definition) -> None:
    """Create the table unless it exists, check it, and add the columns that it lacks; see `FeatureTable.prepare`."""
    schema = stored_schema(definition.schema, name)
    partition_by = [field.column for field in definition.partition]
    if transforms := [field.transform for field in definition.partition if field.transform != "identity"]:
        msg = f"output.partition: Delta has no partitions by {transforms[0]}: expected `none`, or a plain column"
        raise JobError(msg)
    version = find_version(name)
    if version is None:
        version = _create(name, _with_record(schema, definition), partition_by, definition.key)
    _check(name, version, definition, partition_by)
    if _missing(name, version, schema):
        _add_columns(name, schema)


def key_of(version: DeltaVersion) -> str:
    """Name of the key column of a table of features; empty if it is not one."""
    return _recorded(version, _KEY)


def feature_set_of(version: DeltaVersion) -> str:
    """Identity of the features that a table was made for; empty if it is not one of Varve."""
    return _recorded(version, _FEATURE_SET)


def _recorded(version: DeltaVersion, name: str) -> str:
    field = next((field for field in version.schema().fields if field.name == TEXT_HASH), None)
    return "" if field is None else str(field.metadata.get(name, ""))


def _with_record(schema: pa.Schema, definition: Definition) -> pa.Schema:
    record = {_KEY: definition.key, _FEATURE_SET: definition.feature_set, _SOURCE: definition.source_uuid}
    index = schema.get_field_index(TEXT_HASH)
    return schema.set(index, schema.field(index).with_metadata(record))


def _create(name: str, schema: pa.Schema, partition_by: list[str], key: str) -> DeltaVersion:
    with library_errors(name, "created"):
        try:
            retried(lambda: _create_once(name, schema, partition_by, key))
        except (DeltaError, OSError):
            if find_version(name) is None:  # else another driver has created it, or this one and the answer was lost
                raise
    return open_version(name)


def _create_once(name: str, schema: pa.Schema, partition_by: list[str], key: str) -> None:
    if find_version(name) is None:
        DeltaVersion.create(
            name,
            Schema.from_arrow(schema),
            mode="error",
            partition_by=partition_by,
            configuration={_STATISTICS: key},
            storage_options=storage_options(name),
            commit_properties=_ONE_TRY,
        )


def _check(name: str, version: DeltaVersion, definition: Definition, partition_by: list[str]) -> None:
    field = next((field for field in version.schema().fields if field.name == TEXT_HASH), None)
    record = {} if field is None else field.metadata
    other = "name another table in output.table, or delete this one"
    if _FEATURE_SET not in record:
        msg = f"output.table: delta+{name} was not made by Varve (its column {TEXT_HASH} says nothing of it): {other}"
        raise JobError(msg)
    for what, stored, wanted in (
        ("the key", record.get(_KEY), definition.key),
        ("a feature set", record.get(_FEATURE_SET), definition.feature_set),
        ("a source table", record.get(_SOURCE), definition.source_uuid),
        ("partition columns", version.metadata().partition_columns, partition_by),
    ):
        if stored != wanted:
            msg = f"output.table: delta+{name} is of {what} {stored!r}, the job of {wanted!r}: {other}"
            raise JobError(msg)


def _add_columns(name: str, schema: pa.Schema) -> None:
    """Add missing columns, in a commit of their own: a wider schema in the commit of data is ignored by delta-rs."""
    with library_errors(name, "changed"):
        try:
            retried(lambda: _add_columns_once(name, schema))
        except (DeltaError, OSError):
            if _missing(name, open_version(name), schema):  # else another driver has added them
                raise


def _add_columns_once(name: str, schema: pa.Schema) -> None:
    version = open_version(name)
    if missing := _missing(name, version, schema):
        version.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields, commit_properties=_ONE_TRY)


def _missing(name: str, version: DeltaVersion, schema: pa.Schema) -> list[pa.Field]:
    """Columns that the table lacks.

    Raises:
        JobError: a column is of another type.
    """
    stored = plain_schema(pa.schema(version.schema().to_arrow()))
    for field in schema:
        if field.name in stored.names and not stored.field(field.name).type.equals(_as_delta(field).type):
            msg = (
                f"output.table: column {field.name!r} of delta+{name} is of type {stored.field(field.name).type}, the "
                f"job's of {field.type}: name another table in output.table, or delete this one"
            )
            raise JobError(msg)
    return [field for field in schema if field.name not in stored.names]


def _as_delta(field: pa.Field) -> pa.Field:
    """The field as it comes back from a table."""
    return plain_schema(pa.schema(Schema.from_arrow(pa.schema([field])).to_arrow())).field(0)
