"""Checks what a commit is about to publish, as a reader of the table would see it.

Each part is read again in full and compared with its record, so a change of its bytes after it was written is found.
Where the format can stage a version, keys and hashes are read through the table's own reader and compared with the
part's, and for one part all columns. Knows nothing of the source: the canary has compared the parts with it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial

import pyarrow as pa

from varve.backfill.table_run import TableRun
from varve.engine.parallel import Spread
from varve.errors import RunError
from varve.lake.table import Change, Table, TableFile
from varve.lake.text_hash import TEXT_HASH
from varve.output.part_file import Part
from varve.output.part_layout import PartLayout
from varve.output.part_reader import read_columns
from varve.output.part_table import PartTable
from varve.storage.object_store import Storage

_MAX_FAILURES = 20


def check_staged(
    run: TableRun, change: Change, staged: int | None, storage: Storage, parts: PartTable, spread: Spread
) -> list[str]:
    """Describe what differs from the run's records; an empty list permits the commit.

    Args:
        run: the run.
        change: that is about to be committed.
        staged: version of the table that has the change; None if there is none.
        storage: of the run.
        parts: records of its parts.
        spread: reads parts in parallel.
    """
    failures: list[str] = []
    files: Mapping[str, TableFile] = {}
    if staged is not None:
        files = {file.path: file for file in run.destination.files(staged)}
        failures += _compare_files(run, change, set(files))
    added = {f"{run.job.output.path}/{part.name}": part for part in parts if part.range.num_rows}
    whole = min(added, default="")  # the part of which all columns are compared
    table = run.destination if staged is not None else None
    check = partial(_check_part, storage, table, staged, run.layout)
    items = [(part, files.get(path), path == whole) for path, part in sorted(added.items())]
    for found in spread(check, items):
        failures += found
    return sorted(failures)[:_MAX_FAILURES]


def _compare_files(run: TableRun, change: Change, staged: set[str]) -> Iterator[str]:
    """The staged version has the files of the head, without the removed ones, and the added ones."""
    head = {file.path for file in run.destination.files(change.head)}
    expected = (head - {file.path for file in change.removes}) | {file.path for file in change.adds}
    for path in sorted(expected ^ staged):
        yield f"{path} is {'missing in' if path in expected else 'not expected in'} the staged version"


def _check_part(
    storage: Storage,
    table: Table | None,
    version: int | None,
    layout: PartLayout,
    item: tuple[Part, TableFile | None, bool],
) -> list[str]:
    """Compare one part with its record, and with what the table's reader returns."""
    part, file, whole = item
    content = storage.read(part.name)
    if content is None:
        return [f"{part.name} is gone"]
    if len(content) != part.file_bytes or hashlib.sha256(content[: part.data_bytes]).hexdigest() != part.data_sha256:
        return [f"{part.name}: its bytes differ from the committed ones"]
    if table is None or file is None:
        return []
    names = list(layout.columns) if whole else [layout.key, TEXT_HASH]
    stored = read_columns(pa.BufferReader(content), names, part.range.num_rows, len(content))
    expected = layout.apply(stored) if whole else stored
    return [f"{part.name}: {failure}" for failure in _compare_rows(table, version, file, expected)]


def _compare_rows(table: Table, version: int | None, file: TableFile, expected: pa.Table) -> list[str]:
    try:
        seen = pa.concat_tables(table.read(version, file, expected.column_names))
    except (RunError, pa.ArrowException) as e:
        return [f"readers of the table cannot read it: {e}"]
    return [
        f"readers of the table see other values in column {name}"
        for name in expected.column_names
        if not _plain(seen[name]).equals(_plain(expected[name]))
    ]


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The values with types that do not depend on how a reader names them: lists without a length."""
    whole = column.combine_chunks()
    return whole.cast(_plain_type(whole.type))


def _plain_type(column: pa.DataType) -> pa.DataType:
    if pa.types.is_list(column) or pa.types.is_fixed_size_list(column) or pa.types.is_large_list(column):
        return pa.list_(pa.field("element", _plain_type(column.value_type)))
    return pa.binary() if pa.types.is_fixed_size_binary(column) else column
