"""Row group sizes and versions of a source's files, for many files in parallel."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from varve.source.error_messages import UnreadableFileError, as_job_errors
from varve.storage.fsspec_files import file_version, open_file

_NUM_THREADS = 32
_TAIL_BYTES = 8  # the length of the footer, and "PAR1"
_SIGNATURE_BYTES = 28  # a nonce and a tag, see "Parquet Modular Encryption"
_MAX_BYTES = 2**50  # a footer may say anything


class RowGroup(NamedTuple):
    """The sizes of a row group."""

    num_rows: int
    text_bytes: int  # of the text columns before compression; a text that is repeated may count once


def row_groups(
    files: tuple[str, ...], check: Callable[[pa.Schema], None], text_columns: Sequence[str]
) -> list[list[RowGroup]]:
    """The row groups of each Parquet file, from the footers.

    Args:
        files: their URIs.
        text_columns: whose bytes count.
        check: called once with each distinct schema; raises an exception for one that cannot be read.

    Raises:
        JobError: a file cannot be read, or its schema is refused.
    """
    checked: set[pa.Schema] = set()

    def sizes(uri: str) -> list[RowGroup]:
        with as_job_errors(f"source: {uri} cannot be read as Parquet"):
            footer = read_footer(uri)
            schema = footer.schema.to_arrow_schema()
            if schema not in checked:
                check(schema)
                checked.add(schema)
        columns = [number for number in range(footer.num_columns) if footer.schema.column(number).path in text_columns]
        return [_row_group(footer.row_group(number), columns) for number in range(footer.num_row_groups)]

    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as threads:
        return list(threads.map(sizes, files))


def _row_group(group: pq.RowGroupMetaData, columns: Sequence[int]) -> RowGroup:
    sizes = (group.column(number).total_uncompressed_size for number in columns)
    return RowGroup(group.num_rows, min(sum(max(0, size) for size in sizes), _MAX_BYTES))


def read_footer(uri: str) -> pq.FileMetaData:
    """The footer of a Parquet file.

    Raises:
        UnreadableFileError, ValueError: the file is not Parquet, damaged or encrypted.
    """
    with open_file(uri) as file:
        try:
            footer = pq.read_metadata(file)
        except OSError as e:
            if type(e) is not OSError or e.errno is not None:
                raise
            raise UnreadableFileError(str(e)) from e  # by Arrow, not by a file system
        # A footer with a signature belongs to a file with encrypted columns. Arrow ends the process if a program asks
        # for the sizes of such a column.
        file.seek(-_TAIL_BYTES, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") == footer.serialized_size + _SIGNATURE_BYTES:
            msg = "Cannot decrypt ColumnMetadata"
            raise UnreadableFileError(msg)
        return footer


def file_versions(files: tuple[str, ...]) -> tuple[str, ...]:
    """The version of each file (see `file_version`).

    Raises:
        JobError: a file is gone, or its file system does not answer.
    """

    def version(uri: str) -> str:
        with as_job_errors(f"source: cannot get the version of {uri}"):
            return file_version(uri)

    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as threads:
        return tuple(threads.map(version, files))
