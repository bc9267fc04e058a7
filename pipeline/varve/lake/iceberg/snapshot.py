"""Makes the snapshot of a change: its manifests are written, no reference of the table is moved.

The id of a snapshot is a function of the change, so that a catalog takes it once, however often it is sent. The private
names of pyiceberg that Varve needs are used in this file only. Knows nothing of commits.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import AddSnapshotUpdate
from pyiceberg.types import PrimitiveType

from varve.errors import JobError
from varve.lake.iceberg.avro_decoder import bounded_decoding
from varve.lake.iceberg.files import data_file, make_record
from varve.lake.iceberg.partition import partition_record
from varve.lake.iceberg.state import FEATURE_SET_PROPERTY, KEY_PROPERTY, RUN_PROPERTY, STATE_PROPERTY, encode_state
from varve.lake.table import Change, NewFile

_ID_DIGITS = 15  # 60 bits: ids are positive integers of 64 bits


def snapshot_id(table: Table, change: Change) -> int:
    """The id of a change's snapshot: the same files on the same head for the same run have the same id."""
    content = [
        str(table.metadata.table_uuid),
        change.head,
        asdict(change.state),
        sorted((each.path, each.num_rows, each.file_bytes, each.partition) for each in change.adds),
        sorted(each.path for each in change.removes),
    ]
    return int(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_ID_DIGITS], 16)


def branch_name(number: int) -> str:
    """The branch on which a snapshot is staged."""
    return f"varve_{hashlib.sha256(str(number).encode()).hexdigest()[:8]}"


def make_snapshot(table: Table, change: Change) -> Snapshot:
    """Write the manifests of a change; no footer of a data file is read.

    Args:
        table: whose current snapshot is `change.head`.
        change: of files.

    Raises:
        JobError: the partition of a file is not one of the table.
        ValueError: a removed file is not in the table.
    """
    properties = {
        **{f"varve.{name.removeprefix('varve.')}": value for name, value in change.details.items()},
        RUN_PROPERTY: change.state.run,
        FEATURE_SET_PROPERTY: change.state.feature_set,
        STATE_PROPERTY: encode_state(change.state, None),
    }
    update = table.transaction().update_snapshot(snapshot_properties=properties)
    producer = update.overwrite() if change.removes else update.fast_append()
    for record in added_records(table, change.adds):
        producer.append_data_file(record)
    for file in change.removes:
        producer.delete_data_file(data_file(file, table.specs(), table.schema()))
    # A transaction would commit to a branch in two steps and, when it retries, lose the first of them.
    producer._snapshot_id = snapshot_id(table, change)  # noqa: SLF001
    with bounded_decoding():
        updates, _ = producer._commit()  # noqa: SLF001
    [added] = [each for each in updates if isinstance(each, AddSnapshotUpdate)]
    return added.snapshot


def added_records(table: Table, files: Iterable[NewFile]) -> list[DataFile]:
    """Records of new files, with bounds of the key alone.

    Raises:
        JobError: the partition of a file is not one of the table.
    """
    schema, spec = table.schema(), table.spec()
    name = table.properties.get(KEY_PROPERTY)
    return [
        make_record(
            each.path,
            each.num_rows,
            each.file_bytes,
            partition_record(each.partition, spec, schema),
            spec.spec_id,
            **(_bounds(schema, name, each) if name else {}),
        )
        for each in files
    ]


def delete_manifests(io: FileIO, snapshot: Snapshot) -> None:
    """Delete the metadata files of a snapshot that the catalog will never take."""
    with bounded_decoding():
        manifests = snapshot.manifests(io)
    written = [each.manifest_path for each in manifests if each.added_snapshot_id == snapshot.snapshot_id]
    for path in (*written, snapshot.manifest_list):
        try:
            io.delete(path)
        except OSError:  # the table's maintenance removes it
            continue


def _bounds(schema: Schema, name: str, file: NewFile) -> dict[str, dict[int, bytes]]:
    if file.key_range is None:
        return {}
    column = schema.find_field(name)
    if not isinstance(column.field_type, PrimitiveType):
        msg = f"column {name!r} is the key and has the type {column.field_type}: expected an integer or string"
        raise JobError(msg)
    low, high = (to_bytes(column.field_type, bound) for bound in file.key_range)
    return {"lower_bounds": {column.field_id: low}, "upper_bounds": {column.field_id: high}}
