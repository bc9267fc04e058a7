"""Reads columns of a part whose footer says, before anything is decoded, that they fit in memory.

Knows nothing of features. Invariant: a small file cannot decode to far more memory than a part of its rows needs: the
number of rows must be that of the part's name, and the decoded size is bounded by the size of the file.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from varve.errors import RunError
from varve.output.parquet_footer import ColumnChunk, read_footer_sizes
from varve.output.part_form import original_schema, restore_columns
from varve.output.valid_text import check_valid

# A part is at most about 512 MB unless the job sets rows_per_part; vectors hardly compress.
_FREE_BYTES = 2 * 1024**3
_MAX_EXPANSION = 100
_BUFFER_BYTES = 2**23  # of each column whose pages are read one by one


class ImplausiblePartError(RunError):
    """A part that holds another number of rows than its name says, or decodes to far more than a part can hold."""


def read_columns(source: Any, names: Sequence[str] | None, num_rows: int, file_bytes: int) -> pa.Table:
    """Decode columns of a Parquet file.

    Args:
        source: the file, for `pyarrow.parquet.ParquetFile`.
        names: of the columns, in the order of the result; None: all.
        num_rows: that the file must hold.
        file_bytes: size of the file.

    Raises:
        ImplausiblePartError: see there; nothing was decoded, or only dictionaries.
        pa.ArrowException, OSError, KeyError, ValueError: the file is damaged, lacks a column, or has a text that is not
            UTF-8.
    """
    chunks = _read_chunks(source, num_rows)
    with pq.ParquetFile(source, pre_buffer=True) as file:
        names = original_schema(file.metadata).names if names is None else list(names)
        stored = _check_columns(source, file, names, chunks, file_bytes)
        return check_valid(restore_columns(file.read(columns=stored, use_threads=False), names, file.metadata))


def read_batches(
    source: Any, names: Sequence[str], num_rows: int, file_bytes: int, batch_rows: int
) -> Iterator[pa.Table]:
    """Decode columns of a Parquet file, at most `batch_rows` rows at a time, in their order.

    Memory is that of a batch and of the pages that it is in, also if the file is one row group. The other arguments and
    the errors are those of `read_columns`.
    """
    chunks = _read_chunks(source, num_rows)
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        stored, first = _check_columns(source, file, names, chunks, file_bytes), 0
        for batch in file.iter_batches(batch_rows, columns=stored, use_threads=False):
            yield check_valid(restore_columns(pa.Table.from_batches([batch]), list(names), file.metadata, first))
            first += len(batch)


def _read_chunks(source: Any, num_rows: int) -> Sequence[ColumnChunk]:
    """The column chunks of the footer, which holds the expected number of rows."""
    found, chunks = read_footer_sizes(source)
    if found != num_rows:
        msg = f"it holds {found} rows, its name says {num_rows}"
        raise ImplausiblePartError(msg)
    return chunks


def _check_columns(
    source: Any, file: pq.ParquetFile, names: Sequence[str], chunks: Sequence[ColumnChunk], file_bytes: int
) -> list[str]:
    """Check that the columns exist, and that they fit in memory; returns the columns that are in the file."""
    known = original_schema(file.metadata).names
    if unknown := [name for name in names if name not in known]:
        raise KeyError(unknown[0])
    if strings := _check_chunks([chunk for chunk in chunks if _belongs(chunk.path, set(names))], file_bytes):
        _check_dictionaries(source, strings, file_bytes)
    return [name for name in names if name in file.schema_arrow.names]


def _check_chunks(chunks: Sequence[ColumnChunk], file_bytes: int) -> list[str]:
    """Check the decoded size; returns the columns of strings that dictionaries may enlarge."""
    decoded, strings = 0, set[str]()
    for chunk in chunks:
        if min(chunk.num_values, chunk.uncompressed_bytes, chunk.value_bytes) < 0:
            msg = f"its footer has a negative size for {chunk.path}"
            raise ImplausiblePartError(msg)
        decoded += chunk.num_values * chunk.value_bytes + chunk.uncompressed_bytes
        enlarged = chunk.num_values * chunk.uncompressed_bytes
        if not chunk.value_bytes and chunk.has_dictionary and enlarged > _FREE_BYTES:
            strings.add(chunk.path)
    _check_size(decoded, file_bytes)
    return sorted(strings)


def _belongs(path: str, names: set[str]) -> bool:
    """Whether a leaf belongs to one of these columns, whose names may contain dots."""
    return path in names or any(path.startswith(f"{name}.") for name in names)


def _check_dictionaries(source: Any, leaves: list[str], file_bytes: int) -> None:
    """Check the decoded size of strings, which are read as dictionaries."""
    source.seek(0)
    decoded = 0
    with pq.ParquetFile(source, read_dictionary=leaves) as file:
        for batch in file.iter_batches(columns=leaves, use_threads=False):
            for column in batch.columns:
                decoded += sum(map(_decoded_bytes, _dictionaries(column)))
            _check_size(decoded, file_bytes)


def _dictionaries(array: pa.Array) -> Iterator[pa.DictionaryArray]:
    """The dictionary-encoded leaves of an array."""
    if isinstance(array, pa.DictionaryArray):
        yield array
    elif isinstance(array, pa.StructArray):
        for field in array.flatten():
            yield from _dictionaries(field)
    elif isinstance(array, pa.MapArray):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        yield from _dictionaries(array.flatten())


def _decoded_bytes(array: pa.DictionaryArray) -> int:
    lengths = pc.binary_length(array.dictionary)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    return int(lengths.cast(pa.int64()).take(array.indices.drop_null()).to_numpy().sum())


def _check_size(decoded: int, file_bytes: int) -> None:
    if decoded > _FREE_BYTES + _MAX_EXPANSION * file_bytes:
        msg = f"{file_bytes:,} bytes that decode to more than {decoded:,} bytes are not a part that a run wrote"
        raise ImplausiblePartError(msg)
