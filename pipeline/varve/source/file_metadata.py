"""Row group sizes and versions of a source's files, for many files in parallel."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from varve.source.error_messages import UnreadableFileError, as_job_errors
from varve.storage.fsspec_files import file_version, open_file

_NUM_THREADS = 32


def row_group_sizes(files: tuple[str, ...], check: Callable[[pa.Schema], None]) -> list[list[int]]:
    """Rows of each row group of each Parquet file, from the footers.

    Args:
        files: their URIs.
        check: called once with each distinct schema; raises an exception for one that cannot be read.

    Raises:
        JobError: a file cannot be read, or its schema is refused.
    """
    checked: set[pa.Schema] = set()

    def sizes(uri: str) -> list[int]:
        with as_job_errors(f"source: {uri} cannot be read as Parquet"):
            footer = read_footer(uri)
            schema = footer.schema.to_arrow_schema()
            if schema not in checked:
                check(schema)
                checked.add(schema)
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as threads:
        return list(threads.map(sizes, files))


def read_footer(uri: str) -> pq.FileMetaData:
    """The footer of a Parquet file.

    Raises:
        UnreadableFileError, ValueError: the file is not Parquet, damaged or encrypted.
    """
    with open_file(uri) as file:
        try:
            return pq.read_metadata(file)
        except OSError as e:
            if type(e) is not OSError or e.errno is not None:
                raise
            raise UnreadableFileError(str(e)) from e  # by Arrow, not by a file system


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
