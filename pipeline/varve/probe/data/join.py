"""Another table whose columns stand beside the rows of a run, found by a key that both have.

Knows nothing of labels or models. Invariants: the run's rows stay as they are, each once and in order; a cell of a CSV
file that is blank or says NA, null or nan is no value, of text as of numbers; a row without a key is beside none.
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
from varve.probe.data.handcrafted import plain
from varve.probe.data.run_output import positions
from varve.storage.fsspec_files import read_file

_BLANK_IS_NULL = csv_files.ConvertOptions(strings_can_be_null=True)
_READERS = {
    ".parquet": pq.read_table,
    ".csv": partial(csv_files.read_csv, convert_options=_BLANK_IS_NULL),
    ".jsonl": json_files.read_json,
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Joined:
    """A table, where it was read, and the column that it shares with a run."""

    table: pa.Table
    file: str
    on: str

    @classmethod
    def read(cls, file: str, on: str | None) -> Self:
        """Read a .parquet, .csv or .jsonl file.

        Raises:
            JobError: it is none of these, can't be read, or has no such column.
        """
        if on is None:
            msg = "--join needs --on: the column that both tables share"
            raise JobError(msg)
        ending = PurePosixPath(file).suffix.replace(".ndjson", ".jsonl")
        if ending not in _READERS:
            msg = f"--join {file}: expected a .parquet, .csv or .jsonl file"
            raise JobError(msg)
        try:
            table = _READERS[ending](io.BytesIO(read_file(file)))
        except (OSError, pa.ArrowException, ValueError) as e:
            msg = f"--join {file} can't be read: {one_line(e)}"
            raise JobError(msg) from e
        if on not in table.column_names:
            msg = f"--on {on}: {file} has no such column: it has {', '.join(table.column_names)}"
            raise JobError(msg)
        if pa.types.is_nested(table[on].type):
            msg = f"--on {on}: it holds {table[on].type} in {file}: expected one value to a row"
            raise JobError(msg)
        return cls(table.filter(table[on].is_valid()), file, on)

    def beside(self, rows: pa.Table, names: Sequence[str], notes: list[str]) -> pa.Table:
        """The rows of a run with these columns laid beside them, null where a row's key is not here.

        Raises:
            JobError: a key stands here twice, is of another type than the run's, or none is of the run.
        """
        keys, wanted = plain(self.table[self.on]).combine_chunks(), rows[self.on]
        self._refuse_twins(keys)
        try:
            at = positions(wanted.cast(keys.type), keys) if len(keys) else pa.nulls(len(wanted), pa.int32())
        except pa.ArrowException as e:
            msg = f"--on {self.on}: it is {wanted.type} in the run and {keys.type} in {self.file}"
            raise JobError(msg) from e
        lacking = at.null_count
        if lacking == len(at):
            there = f"{keys[0].as_py()!r} in the file" if len(keys) else "no key in the file"
            msg = f"--join {self.file}: no row of the run has its {self.on} there ({wanted[0].as_py()!r} here, {there})"
            raise JobError(msg)
        if lacking:
            notes.append(f"--join {self.file}: {lacking:,} rows of the run have no {self.on} there: values are missing")
        for name in names:
            rows = rows.append_column(name, self.table[name].take(at))
        return rows

    def _refuse_twins(self, keys: pa.Array) -> None:
        counted = keys.value_counts()
        twins = counted.filter(pa.array(counted.field("counts").to_numpy() > 1))
        if len(twins):
            listed = ", ".join(repr(key) for key in twins.field("values").slice(0, _SHOWN).to_pylist())
            msg = f"--join {self.file}: {len(twins):,} values of {self.on} stand there more than once: {listed}"
            raise JobError(msg)
