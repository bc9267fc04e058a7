"""Commits column files to a Lance dataset: as new columns, or as new values of columns that it has.

Knows nothing of what the columns mean. Invariants: a commit is made for one version of the dataset and fails if another
one came first that touches the same fragments; fragments keep all other columns, deletions and row ids that they have;
the rows of an index on a changed column leave the index.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.lake.lance.column_file import ColumnFile, delete_column_file
from varve.lake.lance.dataset import lance_errors, lance_library, storage_options
from varve.lake.lance.fragments import field_ids
from varve.lake.table import HeadMovedError

if TYPE_CHECKING:
    from lance import LanceDataset
    from lance.fragment import DataFile, FragmentMetadata

_DROPPED = -2  # the field id of a column of a file that another file replaces
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit is made for.

    Attributes:
        uri: of the dataset.
        head: the version that was read.
        properties: strings that are stored in the transaction.
    """

    uri: str
    head: "LanceDataset"
    properties: Mapping[str, str]

    def add_columns(self, schema: pa.Schema, files: Sequence[ColumnFile]) -> int:
        """Add columns; fragments without a file have nulls. Returns the new version.

        Args:
            schema: of the new columns, whose field metadata become those of the dataset.
            files: at most one for each fragment of the head.

        Raises:
            HeadMovedError: another commit came first.
            RunError: the store failed.
        """
        fragments = self.head.get_fragments()
        if not fragments:
            return self._add_to_empty(schema)
        with lance_errors(self.uri, "extended"):
            template, merged = self._new_columns(schema, min(fragments, key=lambda each: each.count_rows()))
        by_fragment = {file.fragment: file for file in files}
        metadata = [each.metadata for each in fragments]
        changed = [_with_file(each, by_fragment.get(each.id), template) for each in metadata]
        operation = lance_library().LanceOperation.Merge(changed, merged, preserves_nullability=True)
        return self._commit(operation)

    def update_columns(self, files: Sequence[ColumnFile]) -> int:
        """Replace the columns of some fragments. Returns the new version.

        Args:
            files: one for each fragment that changes.

        Raises:
            HeadMovedError: another commit came first that touches these fragments.
            RunError: the store failed.
        """
        library = lance_library()
        with lance_errors(self.uri, "updated"):
            template = library.fragment.DataFile.create(self.head, files[0].name)
        by_fragment = {file.fragment: file for file in files}
        changed = [each.metadata for each in self.head.get_fragments() if each.fragment_id in by_fragment]
        operation = library.LanceOperation.Update(
            updated_fragments=[_with_file(each, by_fragment[each.id], template) for each in changed],
            fields_modified=sorted(template.fields),
            update_mode="rewrite_columns",
            updated_fragment_offsets={file.fragment: bytes.fromhex(file.updated) for file in files},
        )
        return self._commit(operation)

    def set_field_metadata(self, column: str, values: Mapping[str, str]) -> int:
        """Set metadata of a column that is not nested; returns the new version.

        Raises:
            HeadMovedError: another commit came first that sets the same.
            RunError: the store failed.
        """
        operations = lance_library().LanceOperation
        updates = {field: operations.UpdateMap(dict(values)) for field in field_ids(self.head, [column])}
        return self._commit(operations.UpdateConfig(field_metadata_updates=updates))

    def _commit(self, operation: Any) -> int:
        library = lance_library()
        properties = dict(self.properties)
        transaction = library.Transaction(self.head.version, operation, transaction_properties=properties)
        options: dict[str, Any] = {"max_retries": 0, "storage_options": storage_options(self.uri)}
        with lance_errors(self.uri, "committed"), self._conflicts():
            return library.LanceDataset.commit(self.uri, transaction, **options).version

    @contextmanager
    def _conflicts(self) -> Iterator[None]:
        try:
            yield
        except lance_library().commit.CommitConflictError as e:
            msg = f"{self.uri}: another commit came after version {self.head.version}"
            raise HeadMovedError(msg) from e

    def _new_columns(self, schema: pa.Schema, fragment: Any) -> tuple["DataFile", Any]:
        """(a data file of these columns, the schema with them): Lance chooses the ids of fields, given null values."""
        metadata, merged = fragment.merge_columns(_nulls(schema, fragment.count_rows()))
        template = metadata.files[-1]
        delete_column_file(self.uri, str(template.path))
        return template, merged

    def _add_to_empty(self, schema: pa.Schema) -> int:
        with lance_errors(self.uri, "extended"), self._conflicts():
            self.head.add_columns(schema)
            return self.head.version


def _nulls(schema: pa.Schema, rows: int) -> pa.RecordBatchReader:
    def batches() -> Iterable[pa.RecordBatch]:
        for start in range(0, rows, _BATCH_ROWS):
            count = min(_BATCH_ROWS, rows - start)
            yield pa.RecordBatch.from_arrays([pa.nulls(count, field.type) for field in schema], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _with_file(fragment: "FragmentMetadata", file: ColumnFile | None, template: "DataFile") -> "FragmentMetadata":
    """The fragment with the columns of the file in place of its own."""
    if file is None:
        return fragment
    kept = [_without(each, frozenset(template.fields)) for each in fragment.files]
    layout = (template.fields, template.column_indices, template.file_major_version, template.file_minor_version)
    added = lance_library().fragment.DataFile(file.name, *layout, file.file_bytes)
    fragment.files = [*(each for each in kept if any(field != _DROPPED for field in each.fields)), added]
    return fragment


def _without(file: "DataFile", fields: frozenset[int]) -> "DataFile":
    """A data file some of whose columns are no longer read."""
    if fields.isdisjoint(file.fields):
        return file
    left = [_DROPPED if field in fields else field for field in file.fields]
    versions = (file.file_major_version, file.file_minor_version, file.file_size_bytes, file.base_id)
    return lance_library().fragment.DataFile(str(file.path), left, file.column_indices, *versions)
