"""Files with some columns of one fragment, written by workers before a commit makes them part of the dataset.

Knows nothing of what the columns mean. Invariants: a file has one row for each physical row of its fragment, deleted
ones included; no version names it until it is committed; its name is new each time.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self
from uuid import uuid4

import pyarrow as pa

from varve.errors import RunError
from varve.lake.lance.dataset import lance_errors, lance_library, storage_options

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A file with new values of some columns of a fragment.

    Attributes:
        fragment: id of the fragment.
        name: of the file in the dataset's folder `data`.
        num_rows: physical rows.
        file_bytes: its size.
        updated: bitmap of the physical rows with new values, see `lance_offsets`, in hexadecimal digits.
    """

    fragment: int
    name: str
    num_rows: int
    file_bytes: int
    updated: str

    def to_json(self) -> bytes:
        """The fields, for a record."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read a record.

        Raises:
            RunError: it is not what `to_json` returned.
        """
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as e:
            msg = f"a record of a Lance column file cannot be read: {type(e).__name__} {e}"
            raise RunError(msg) from e


def write_column_file(
    uri: str, prefix: str, file_format: str, schema: pa.Schema, tables: Iterable[pa.Table]
) -> tuple[str, int, int]:
    """Write a file; returns (its name, number of rows, size in bytes).

    Args:
        uri: of the dataset.
        prefix: of the name.
        file_format: version of Lance's file format, that of the dataset.
        schema: of the columns.
        tables: the rows, in order.

    Raises:
        RunError: the store failed.
    """
    name, rows = f"{prefix}{uuid4().hex}.lance", 0
    options: dict[str, Any] = {"version": file_format, "storage_options": storage_options(uri)}
    with lance_errors(f"{uri}/data/{name}", "written"):
        writer = lance_library().file.LanceFileWriter(f"{uri}/data/{name}", schema, **options)
        for table in tables:
            rows += len(table)
            writer.write_batch(table)
        writer.close()
        return name, rows, writer.size_bytes or 0


def read_column_file(uri: str, name: str) -> Iterator[pa.Table]:
    """The rows of a file, in order.

    Raises:
        RunError: it is missing or cannot be read.
    """
    with lance_errors(f"{uri}/data/{name}", "read"):
        reader = lance_library().file.LanceFileReader(f"{uri}/data/{name}", storage_options=storage_options(uri))
        for batch in reader.read_all(batch_size=_BATCH_ROWS).to_batches():
            yield pa.Table.from_batches([batch])


def delete_column_file(uri: str, name: str) -> None:
    """Delete a file that no version names.

    Raises:
        RunError: the store failed.
    """
    with lance_errors(f"{uri}/data/{name}", "deleted"):
        session = lance_library().file.LanceFileSession(f"{uri}/data", storage_options=storage_options(uri))
        session.delete_file(name)
