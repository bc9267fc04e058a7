"""Delete files as Spark and Flink write them; pyiceberg reads the first two kinds and writes none."""

import io
import json
import time
import zlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import AddSnapshotUpdate, AssertTableUUID, SetSnapshotRefUpdate
from pyiceberg.typedef import Record
from pyroaring import BitMap

_PUFFIN, _VECTOR = b"PFA1", b"\xd1\xd3\x39\x64"


class _DeleteManifestWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def position_deletes(path: str, positions: Sequence[int]) -> bytes:
    """A Parquet file of deleted positions in one data file."""
    ids = [{"PARQUET:field_id": "2147483546"}, {"PARQUET:field_id": "2147483545"}]
    schema = pa.schema([pa.field("file_path", pa.string(), False, ids[0]), pa.field("pos", pa.int64(), False, ids[1])])
    buffer = io.BytesIO()
    pq.write_table(pa.table([[path] * len(positions), list(positions)], schema=schema), buffer)
    return buffer.getvalue()


def deletion_vectors(deleted: dict[str, Sequence[int]]) -> bytes:
    """A Puffin file with one deletion vector for each data file."""
    content, blobs = _PUFFIN, []
    for path, positions in deleted.items():
        bitmap = (1).to_bytes(8, "little") + (0).to_bytes(4, "little") + BitMap(positions).serialize()
        vector = _VECTOR + bitmap
        blob = len(vector).to_bytes(4, "big") + vector + zlib.crc32(vector).to_bytes(4, "big")
        properties = {"referenced-data-file": path, "cardinality": str(len(positions))}
        blobs.append(
            {"type": "deletion-vector-v1", "fields": [2147483645], "snapshot-id": -1, "sequence-number": -1}
            | {"offset": len(content), "length": len(blob), "properties": properties}
        )
        content += blob
    footer = json.dumps({"blobs": blobs, "properties": {}}).encode()
    return content + _PUFFIN + footer + len(footer).to_bytes(4, "little") + bytes(4) + _PUFFIN


def add_delete_file(
    table: Table,
    name: str,
    content: bytes,
    kind: DataFileContent = DataFileContent.POSITION_DELETES,
    partition: Record | None = None,
) -> None:
    """Commit a delete file; its format follows from its name.

    Args:
        table: gets a snapshot.
        name: of the file.
        content: of the file.
        kind: of deletes.
        partition: of the data files.
    """
    path = f"{table.location()}/data/{name}"
    _write(table, path, content)
    record = DataFile.from_args(
        content=kind,
        file_path=path,
        file_format=FileFormat.PUFFIN if name.endswith(".puffin") else FileFormat.PARQUET,
        partition=partition or Record(),
        record_count=1,
        file_size_in_bytes=len(content),
        equality_ids=[1] if kind == DataFileContent.EQUALITY_DELETES else None,
    )
    record.spec_id = table.spec().spec_id
    number, before, metadata = time.monotonic_ns(), table.current_snapshot(), table.metadata
    assert before is not None
    output = table.io.new_output(f"{table.location()}/metadata/{number}-m0.avro")
    with _DeleteManifestWriter(table.spec(), table.schema(), output, number, "deflate") as writer:
        writer.add(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=number, data_file=record))
    listing = f"{table.location()}/metadata/snap-{number}.avro"
    sequence = table.last_sequence_number + 1
    with write_manifest_list(
        2, table.io.new_output(listing), number, before.snapshot_id, sequence, "deflate"
    ) as manifests:
        manifests.add_manifests([writer.to_manifest_file(), *before.manifests(table.io)])
    fields = {
        "snapshot-id": number, "parent-snapshot-id": before.snapshot_id, "sequence-number": sequence,
        "manifest-list": listing, "schema-id": table.schema().schema_id, "summary": {"operation": "delete"},
    }  # fmt: skip
    updates = (
        AddSnapshotUpdate(snapshot=Snapshot.model_validate(fields)),
        SetSnapshotRefUpdate.model_validate({"ref-name": "main", "type": "branch", "snapshot-id": number}),
    )
    table.catalog.commit_table(table, (AssertTableUUID(uuid=metadata.table_uuid),), updates)


def _write(table: Table, path: str, content: bytes) -> None:
    with table.io.new_output(path).create() as stream:
        stream.write(content)
