"""Adds columns of another table to the rows of a run, matched by a key column that both have.

Knows nothing of labels or models. Invariants: each row of the run stays once, in the same order; blank cells of a CSV
file, and NA, null and nan, are null in text as in numbers; a row without a key matches nothing.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as csv_files
from pyarrow import json as json_files

from varve.errors import JobError, one_line
from varve.output.run_output import index_in
from varve.probe.data.handcrafted import decode_dictionary
from varve.storage.fsspec_files import read_file

_READERS = {
    ".parquet": pq.read_table,
    ".csv": partial(csv_files.read_csv, convert_options=csv_files.ConvertOptions(strings_can_be_null=True)),
    ".jsonl": json_files.read_json,
}
_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class JoinTable:
    """A table, its file, and the key column that it shares with a run."""

    table: pa.Table
    file: str
    on: str

    @classmethod
    def read(cls, file: str, on: str | None) -> Self:
        """Read a .parquet, .csv or .jsonl file.

        Raises:
            JobError: the file is of another type, cannot be read, or has no such key column.
        """
        if on is None:
            msg = "--join needs --on: the key column of both tables"
            raise JobError(msg)
        suffix = PurePosixPath(file).suffix.replace(".ndjson", ".jsonl")
        if suffix not in _READERS:
            msg = f"--join {file}: expected a .parquet, .csv or .jsonl file"
            raise JobError(msg)
        try:
            table = _READERS[suffix](io.BytesIO(read_file(file)))
        except (OSError, pa.ArrowException, ValueError) as e:
            msg = f"--join {file} cannot be read: {one_line(e)}"
            raise JobError(msg) from e
        if on not in table.column_names:
            msg = f"--on {on}: {file} has no such column: it has {', '.join(table.column_names)}"
            raise JobError(msg)
        if pa.types.is_nested(table[on].type):
            msg = f"--on {on}: it holds {table[on].type} in {file}: expected one value per row"
            raise JobError(msg)
        return cls(table.filter(table[on].is_valid()), file, on)

    def add_columns(self, rows: pa.Table, names: Sequence[str], notes: list[str]) -> pa.Table:
        """The rows of a run with these columns of the file; null where the file does not have a row's key.

        Raises:
            JobError: a key is in the file twice, keys differ in type, or no key of the run is in the file.
        """
        keys, row_keys = decode_dictionary(self.table[self.on]).combine_chunks(), rows[self.on]
        self._check_unique(keys)
        try:
            found = index_in(row_keys.cast(keys.type), keys) if len(keys) else pa.nulls(len(row_keys), pa.int32())
        except pa.ArrowException as e:
            msg = f"--on {self.on}: it is {row_keys.type} in the run and {keys.type} in {self.file}"
            raise JobError(msg) from e
        if found.null_count == len(found):
            example = f"{keys[0].as_py()!r}" if len(keys) else "no key"
            msg = (
                f"--join {self.file}: no row of the run matches by {self.on} (the run has {row_keys[0].as_py()!r}, "
                f"the file has {example})"
            )
            raise JobError(msg)
        if found.null_count:
            notes.append(f"--join {self.file}: {found.null_count:,} rows of the run do not match by {self.on}")
        for name in names:
            rows = rows.append_column(name, self.table[name].take(found))
        return rows

    def _check_unique(self, keys: pa.Array) -> None:
        counted = keys.value_counts()
        repeated = counted.filter(pa.array(counted.field("counts").to_numpy() > 1))
        if len(repeated):
            listed = ", ".join(repr(key) for key in repeated.field("values").slice(0, _MAX_LISTED).to_pylist())
            msg = f"--join {self.file}: {len(repeated):,} values of {self.on} appear more than once: {listed}"
            raise JobError(msg)
