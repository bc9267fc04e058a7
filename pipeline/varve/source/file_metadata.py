"""What the files of a source say without being read: how many rows each row group has, and which version each is.

Many are asked at once. Knows nothing of columns.
"""

from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from varve.source.error_messages import as_job_errors
from varve.storage.fsspec_files import file_version, open_file

_AT_ONCE = 32


def row_groups(files: tuple[str, ...]) -> list[list[int]]:
    """Rows of each row group of each Parquet file, from the footers.

    Raises:
        JobError: a file can't be read.
    """

    def count(uri: str) -> list[int]:
        with as_job_errors(f"source: {uri} can't be read as Parquet"), open_file(uri) as file:
            footer = pq.read_metadata(file)
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        return list(threads.map(count, files))


def versions(files: tuple[str, ...]) -> tuple[str, ...]:
    """What changes when a file is replaced, of each file; empty where its file system does not say.

    Raises:
        JobError: a file is gone or can't be asked about.
    """

    def ask(uri: str) -> str:
        with as_job_errors(f"source: {uri} can't be looked at"):
            return file_version(uri)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as threads:
        return tuple(threads.map(ask, files))
