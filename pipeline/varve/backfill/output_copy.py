"""Writes the parts of a run with the features of a finished output, in place of encoding the texts again.

Knows nothing of models or tables. Invariants: key, kept columns and hash come from the source, features from the row of
the output at the same position of the same file; a part of the output is used only if its bytes are those of its
record, and a row only if its key, and its hash where the output has it, are those of the source.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.engine.parallel import Spread
from varve.errors import RunError, one_line
from varve.lake.text_hash import TEXT_HASH
from varve.output import manifest
from varve.output.part_file import Part, write_part
from varve.output.part_layout import PartLayout
from varve.output.part_reader import read_columns
from varve.output.part_table import PartTable
from varve.output.run_output import Output
from varve.planning.plan import Plan
from varve.ranges import Missing, Range
from varve.source.dataset import Dataset
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

_OF_POSITION = ("shard", "row")


def copy_rows(
    output: Output,
    dataset: Dataset,
    plan: Plan,
    selection: RowSelection,
    layout: PartLayout,
    storage: Storage,
    spread: Spread,
) -> None:
    """Write the missing parts of a run.

    Args:
        output: with the features of all rows of the source.
        dataset: the source of the output.
        plan: of the run, with the selected rows as its source.
        selection: the rows.
        layout: of the run's parts.
        storage: of the run.
        spread: runs the files in parallel.

    Raises:
        RunError: a part of the output is damaged, or its rows are not those of the source.
    """
    committed = manifest.committed(storage)
    missing = manifest.missing(committed, plan.resolved.num_shards, plan.resolved.rows_per_part, storage.uri)
    shards = {path: shard for shard, path in enumerate(dataset.files)}
    numbers = tuple(shards[path] for path in plan.dataset.files)
    kept, grid = plan.job.source.kept, plan.resolved.rows_per_part
    copy = _Copy(
        output, numbers, plan.dataset, plan.schema, kept, plan.fingerprint, grid, selection, layout, storage, missing
    )
    copy.check_types()
    for _ in spread(copy, sorted(missing)):
        pass


@dataclass(frozen=True, slots=True)
class _Copy:
    """Writes the missing parts of one shard; called with its number.

    Attributes:
        numbers: shard of the output for each shard of the run.
    """

    output: Output
    numbers: Sequence[int]
    dataset: Dataset
    schema: pa.Schema
    kept: Sequence[str]
    fingerprint: str
    rows_per_part: int
    selection: RowSelection
    layout: PartLayout
    storage: Storage
    missing: Mapping[int, Missing]

    def __call__(self, shard: int) -> None:
        positions, parts = self.selection.positions(shard), self._parts(self.numbers[shard])
        for start, rows in self.dataset.read_parts(shard, self.rows_per_part, self.missing[shard]):
            stop = start + len(rows)
            wanted = np.arange(start, stop) if positions is None else positions[start:stop]
            table = self._join(Range(shard, start, stop), rows, self._take(parts, wanted))
            write_part(self.storage, Range(shard, start, stop), table, self.fingerprint, layout=self.layout)

    def check_types(self) -> None:
        """Check that the output has the columns of the run.

        Raises:
            RunError: it has not.
        """
        stored = {field.name: field.type for field in self.output.schema}
        if other := [name for name in self._copied if stored.get(name) != self.schema.field(name).type]:
            msg = (
                f"{self.output.path}: column {other[0]} is {stored.get(other[0], 'missing')}, this version of Varve "
                f"writes {self.schema.field(other[0]).type}: run the job again with output.table"
            )
            raise RunError(msg)

    @property
    def _copied(self) -> list[str]:
        """Names of the columns that come from the output."""
        return [name for name in self.schema.names if name not in {*self.kept, *_OF_POSITION}]

    @property
    def _compared(self) -> list[str]:
        """Names of the columns by which a row is recognized."""
        return [name for name in (self.layout.key, TEXT_HASH) if name in self.output.schema.names]

    def _parts(self, number: int) -> list[Part]:
        """The parts of a shard of the output that have rows, in order."""
        columns = self.output.manifest.parts.columns
        of_shard = PartTable(columns.filter(pa.array(columns["shard"].to_numpy() == number))).in_order()
        return [part for part in of_shard if part.range.num_rows]

    def _take(self, parts: Sequence[Part], positions: NDArray[np.int64]) -> pa.Table:
        """The rows of the output at these positions, which ascend."""
        names = [*self._compared, *self._copied]
        tables = [pa.schema([self.output.schema.field(name) for name in names]).empty_table()]
        for part in parts:
            low, high = np.searchsorted(positions, (part.start, part.stop))
            if low < high:
                tables.append(self._read(part, names).take(pa.array(positions[low:high] - part.start)))
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])

    def _read(self, part: Part, names: Sequence[str]) -> pa.Table:
        """Columns of a part, after its bytes were compared with its record."""
        storage = self.output.storage
        content = storage.read(part.name)
        if content is None:
            msg = f"{storage.uri}/{part.name} is gone"
            raise RunError(msg)
        if (
            len(content) != part.file_bytes
            or hashlib.sha256(content[: part.data_bytes]).hexdigest() != part.data_sha256
        ):
            msg = f"{storage.uri}/{part.name}: its bytes differ from the committed ones. See `varve verify`"
            raise RunError(msg)
        try:
            return read_columns(pa.BufferReader(content), names, part.range.num_rows, len(content))
        except (pa.ArrowException, OSError, KeyError, ValueError) as e:
            msg = f"{storage.uri}/{part.name} cannot be read: {one_line(e)}. See `varve verify`"
            raise RunError(msg) from e

    def _join(self, cell: Range, rows: pa.Table, found: pa.Table) -> pa.Table:
        """One cell of the run: `rows` of the source, with the features that were `found` for them."""
        where = f"{self.output.path}: the rows of {self.dataset.file_of(cell.shard)}"
        if len(found) != len(rows):
            msg = f"{where} are {len(found)} in the output, expected {len(rows)}. See `varve verify`"
            raise RunError(msg)
        for name in self._compared:
            if not found[name].equals(rows[name]):
                msg = f"{where} have another {name} in the output than in the source. See `varve verify`"
                raise RunError(msg)
        numbers = {
            "shard": pa.array(np.full(len(rows), cell.shard, np.int32)),
            "row": pa.array(np.arange(cell.start, cell.stop, dtype=np.int64)),
        }
        columns = [
            numbers[name] if name in numbers else (rows if name in self.kept else found)[name].combine_chunks()
            for name in self.schema.names
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)
