"""One Lance dataset: fragments that are written by workers, one commit, index segments, one commit.

Knows nothing of outputs. Invariants: fragments and segments that no commit names are invisible; the dataset is created
once, so a late worker cannot replace it; addresses hold no credential: Lance reads them from the environment.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.errors import RunError
from varve.indexing.lance.layout import VECTOR
from varve.indexing.lance.segment import decode_segment, encode_segment
from varve.lake.lance.dataset import is_missing, lance_errors, lance_library, storage_options

if TYPE_CHECKING:
    from lance import LanceDataset

_MAX_COMMITS = 10  # of an index, where other builders commit at the same time


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset, by its address."""

    uri: str

    def open(self) -> "LanceDataset | None":
        """The latest version; None if there is none.

        Raises:
            RunError: it cannot be read.
        """
        with lance_errors(self.uri, "read"):
            try:
                return lance_library().dataset(self.uri, storage_options=storage_options(self.uri))
            except ValueError as e:
                if is_missing(e):
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
        with lance_errors(self.uri, "written"):
            written = write(rows, self.uri, schema=rows.schema, mode=mode, storage_options=storage_options(self.uri))
        return [fragment.to_json() for fragment in written]

    def create(self, schema: pa.Schema, fragments: Sequence[Mapping[str, Any]]) -> None:
        """Make the first version of the dataset, with these fragments in their order, unless there is one.

        Raises:
            RunError: the store failed.
        """
        lance = lance_library()
        files = [lance.fragment.FragmentMetadata.from_json(json.dumps(each)) for each in fragments]
        operation = lance.LanceOperation.Overwrite(schema, files)
        options: dict[str, Any] = {"read_version": 0, "storage_options": storage_options(self.uri)}
        with lance_errors(self.uri, "created"):
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
        with lance_errors(self.uri, "indexed"):
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
            with lance_errors(self.uri, "indexed"), suppress(lance_library().commit.CommitConflictError):
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
        """Number of rows that an index covers; 0 if it does not exist.

        Raises:
            RunError: the dataset is missing, or cannot be read.
        """
        dataset = self.require()
        with lance_errors(self.uri, "read"):
            return next((each.num_rows_indexed for each in dataset.describe_indices() if each.name == index), 0)

    def remove_unused_files(self) -> None:
        """Delete the files that the latest version does not name: of interrupted workers, and of other kinds.

        Only for a dataset that is not published: its readers and writers may need older versions.

        Raises:
            RunError: the dataset is missing, or the store failed.
        """
        dataset = self.require()
        with lance_errors(self.uri, "cleaned"):
            dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def drop_indices(self) -> None:
        """Remove all indexes from the latest version.

        Raises:
            RunError: the dataset is missing, or the store failed.
        """
        dataset = self.require()
        with lance_errors(self.uri, "changed"):
            for index in dataset.describe_indices():
                self.require().drop_index(index.name)
