"""Columns whose values are in the paths of files: folders KEY=VALUE, as Hive, Spark and DuckDB partition tables.

Knows nothing of formats. Invariant: the columns and their types are a function of the paths of all files and of the
job, so each run of a job has the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa

from varve.errors import JobError, one_line
from varve.source.readers import Reader

NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_INT64 = range(-(2**63), 2**63)


def read_hive_columns(files: Sequence[str], names: Sequence[str], types: Mapping[str, pa.DataType]) -> pa.Table:
    """The values that the paths of files hold.

    Args:
        files: their URIs.
        names: of the columns; one that is in no path is left out.
        types: of columns; another one is int64 if all its values are integers without leading zeros, else string.

    Returns:
        A row per file, a column per name. A file without the key, or with the folder of nulls, has null.

    Raises:
        JobError: a value does not have the type that the job gives the column.
    """
    keys = [_keys(uri) for uri in files]
    present = [name for name in names if any(name in found for found in keys)]
    columns = {name: _typed(name, [found.get(name) for found in keys], files, types.get(name)) for name in present}
    return pa.table(columns)


def _keys(uri: str) -> dict[str, str | None]:
    """{key: value} of the folders of a path, percent-decoded; of a key that is there twice, the innermost value."""
    folders = (folder.partition("=") for folder in uri.split("/")[:-1])
    found = {unquote(key): unquote(value) for key, equals, value in folders if key and equals}
    return {key: None if value == NULL else value for key, value in found.items()}


def _typed(name: str, values: list[str | None], files: Sequence[str], kind: pa.DataType | None) -> pa.Array:
    present = {value for value in values if value is not None}
    if kind is None:
        is_integer = present and all(_INTEGER.fullmatch(value) and int(value) in _INT64 for value in present)
        kind = pa.int64() if is_integer else pa.string()
    try:
        return pa.array(values, pa.string()).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        msg = (
            f"source.types.{name}: the values in the paths of the files, such as {name}={min(present)} in {files[0]}, "
            f"cannot be read as {kind}: {one_line(e)}. Set its type: source.types: {{{name}: string}}"
        )
        raise JobError(msg) from e


@dataclass(frozen=True, slots=True)
class HiveReader:
    """Reads shards with another reader, and adds the values of the path to each row.

    Attributes:
        reader: of the columns that the files hold.
        file_of_shard: row of each shard in `values`.
        values: of each file, see `read_hive_columns`.
    """

    reader: Reader
    file_of_shard: tuple[int, ...]
    values: pa.Table

    def read(self, shard: int, first: int) -> Iterator[pa.Table]:
        """The rows of a shard from row `first` on, in tables of any size."""
        own = {name: self.values[name][self.file_of_shard[shard]] for name in self.values.column_names}
        for table in self.reader.read(shard, first):
            yield pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **_repeat(own, len(table))})


def _repeat(values: Mapping[str, pa.Scalar], rows: int) -> dict[str, pa.Array]:
    return {name: pa.repeat(value, rows) for name, value in values.items()}
