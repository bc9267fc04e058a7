"""One Lance dataset: fragments that are written by workers, one commit, index segments, one commit.

Knows nothing of outputs. Invariants: fragments and segments that no commit names are invisible; the dataset is created
once, so a late worker cannot replace it; addresses hold no credential: Lance reads them from the environment.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.errors import JobError, RunError, one_line
from varve.indexing.lance.layout import VECTOR
from varve.indexing.lance.segment import decode_segment, encode_segment

if TYPE_CHECKING:
    from lance import LanceDataset

_MAX_COMMITS = 10  # of an index, where other builders commit at the same time
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset, by its address."""

    uri: str

    @property
    def _options(self) -> dict[str, str]:
        """What Lance does not read from the environment."""
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        return {"allow_http": "true"} if plain and "://" in self.uri else {}

    def open(self) -> "LanceDataset | None":
        """The latest version; None if there is none.

        Raises:
            RunError: it cannot be read.
        """
        with self._reports("read"):
            try:
                return lance_library().dataset(self.uri, storage_options=self._options)
            except ValueError as e:
                if "not found" in str(e).lower():
                    return None
                raise

    def require(self) -> "LanceDataset":
        """The latest version.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        if (dataset := self.open()) is None:
            msg = f"{self.uri} is missing"
            raise RunError(msg)
        return dataset

    def write_fragments(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Write rows as files that no version names yet; returns what `create` needs, as JSON.

        Raises:
            RunError: the store failed.
        """
        write = lance_library().fragment.write_fragments
        # Another process may have made the dataset; where it has not, Lance warns of the mode "overwrite".
        mode = "create" if self.open() is None else "overwrite"
        with self._reports("written"):
            written = write(rows, self.uri, schema=rows.schema, mode=mode, storage_options=self._options)
        return [fragment.to_json() for fragment in written]

    def create(self, schema: pa.Schema, fragments: Sequence[Mapping[str, Any]]) -> None:
        """Make the first version of the dataset, with these fragments in their order, unless there is one.

        Raises:
            RunError: the store failed.
        """
        lance = lance_library()
        files = [lance.fragment.FragmentMetadata.from_json(json.dumps(each)) for each in fragments]
        operation = lance.LanceOperation.Overwrite(schema, files)
        options: dict[str, Any] = {"read_version": 0, "storage_options": self._options}
        with self._reports("created"):
            try:
                lance.LanceDataset.commit(self.uri, operation, max_retries=0, **options)
            except (OSError, ValueError, RuntimeError):
                if self.open() is None:  # else another process has made the first version
                    raise

    def build_segment(self, index: str, kind: str, options: Mapping[str, Any], fragments: Sequence[int]) -> bytes:
        """Index some fragments; returns what `commit_index` needs. No version names the segment yet.

        Raises:
            RunError: the store failed.
        """
        dataset = self.require()
        with self._reports("indexed"):
            segment = dataset.create_index_uncommitted(
                VECTOR, kind, name=index, fragment_ids=list(fragments), replace=True, **options
            )
        return encode_segment(segment)

    def commit_index(self, index: str, segments: Sequence[bytes], num_rows: int) -> None:
        """Make the index of these segments the only one of the dataset, unless it is.

        Raises:
            RunError: the store failed, or the index does not cover all rows, so that a search would scan the others.
        """
        decoded: list[Any] = [decode_segment(each) for each in segments]
        for _ in range(_MAX_COMMITS):
            if self.indexed_rows(index) == num_rows:
                return
            # A conflict with another builder: look at what it has committed.
            with self._reports("indexed"), suppress(lance_library().commit.CommitConflictError):
                self.drop_indices()
                self.require().commit_existing_index_segments(index, VECTOR, decoded)
        self.check_index(index, num_rows)

    def check_index(self, index: str, num_rows: int) -> None:
        """Check that an index covers all rows.

        Raises:
            RunError: it does not.
        """
        if (found := self.indexed_rows(index)) != num_rows:
            msg = (
                f"{self.uri}: the index {index} covers {found:,} of {num_rows:,} vectors. "
                "Delete the folder and build the index again"
            )
            raise RunError(msg)

    def indexed_rows(self, index: str) -> int:
        """Number of rows that an index covers; 0 if it does not exist."""
        return next((each.num_rows_indexed for each in self.require().describe_indices() if each.name == index), 0)

    def remove_unused_files(self) -> None:
        """Delete the files that the latest version does not name: of interrupted workers, and of other kinds.

        Only for a dataset that is not published: its readers and writers may need older versions.
        """
        self.require().cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def drop_indices(self) -> None:
        """Remove all indexes from the latest version."""
        for index in self.require().describe_indices():
            self.require().drop_index(index.name)

    @contextmanager
    def _reports(self, done: str) -> Iterator[None]:
        """Turn an error of Lance into a `RunError`."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as e:
            msg = f"{self.uri} cannot be {done}: {one_line(e)}"
            raise RunError(msg) from e


def lance_library() -> Any:
    """The package lance.

    Raises:
        JobError: it is not installed.
    """
    try:
        import lance  # noqa: PLC0415 (half a second)
        import lance.commit  # noqa: PLC0415
        import lance.fragment  # noqa: PLC0415
    except ImportError as e:
        msg = "pylance is missing: run pip install '.[lance]' in Varve's folder"
        raise JobError(msg) from e
    return lance
