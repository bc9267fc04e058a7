"""The rows that Varve reads of a table, file by file."""

from typing import NamedTuple

import pyarrow as pa

from varve.config.table_address import parse_table_address
from varve.lake.open_table import open_table

COLUMNS = ["doc_id", "lang", "body"]


class FileRows(NamedTuple):
    """What Varve knows and reads of one data file."""

    identity: str
    rows: list[tuple]


def read_files(address: str) -> dict[str, FileRows]:
    """Path → rows of each file of the current version."""
    table = open_table(parse_table_address(address))
    version, found = table.pin(None).version, {}
    for file in table.files(version, "doc_id"):
        whole = pa.concat_tables(table.read(version, file, COLUMNS))
        rows = list(zip(*whole.select(COLUMNS).to_pydict().values(), strict=True))
        assert file.num_rows in {None, len(rows)}
        if file.key_range and rows:
            low, high = file.key_range
            assert all(low <= key <= high for key, _, _ in rows)
        found[file.path] = FileRows(file.identity, rows)
    return found


def all_rows(files: dict[str, FileRows]) -> list[tuple]:
    """The rows of all files, in the order of their keys."""
    return sorted(row for file in files.values() for row in file.rows)


def check_identities(before: dict[str, FileRows], after: dict[str, FileRows], *, exact: bool = True) -> None:
    """Files with the same identity have the same rows; `exact`: and those with another one have other rows."""
    for path in before.keys() & after.keys():
        is_same = before[path].rows == after[path].rows
        if exact or not is_same:
            assert (before[path].identity == after[path].identity) == is_same, path
