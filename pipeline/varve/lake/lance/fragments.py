"""The fragments of a version of a Lance dataset: which data files hold which columns, and what identifies their rows.

Knows nothing of texts or vectors. Invariants: the columns that Varve wrote carry its mark in their field metadata; they
do not count for the identity of a fragment, so a run does not change what the next run compares.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from varve.lake.table import TableFile

if TYPE_CHECKING:
    from lance import LanceDataset
    from lance.fragment import FragmentMetadata

# Field metadata of a column that Varve wrote: the feature set.
FEATURE_SET_KEY = "varve.feature_set"
_PREFIX = "fragment/"


def fragment_path(fragment: int) -> str:
    """The path of a fragment, for `TableFile`."""
    return f"{_PREFIX}{fragment}"


def fragment_id(path: str) -> int:
    """The id of the fragment of a path."""
    return int(path.removeprefix(_PREFIX))


def own_fields(dataset: "LanceDataset") -> frozenset[int]:
    """Ids of the fields that Varve wrote."""
    own = [field.name for field in dataset.schema if FEATURE_SET_KEY.encode() in (field.metadata or {})]
    return field_ids(dataset, own)


def field_ids(dataset: "LanceDataset", names: Iterable[str]) -> frozenset[int]:
    """Ids of the fields of columns, with their nested fields; columns that do not exist have none."""
    schema = dataset.lance_schema
    fields = [field for name in names if (field := schema.field(name)) is not None]
    return frozenset(each for field in fields for each in _with_children(field))


def _with_children(field: Any) -> Iterable[int]:
    yield field.id()
    for child in field.children():
        yield from _with_children(child)


def files_of(fragment: "FragmentMetadata", fields: frozenset[int]) -> list[str]:
    """Names of the data files that hold some of these fields."""
    return [str(file.path) for file in fragment.files if fields & {*file.fields}]


def describe_fragments(dataset: "LanceDataset", column: str | None = None) -> list[TableFile]:
    """The fragments of a version, sorted by path.

    Args:
        dataset: one version.
        column: accepted for the protocol; Lance's manifest has no statistics of columns.
    """
    del column
    own = own_fields(dataset)
    fragments = [_describe(fragment.metadata, own) for fragment in dataset.get_fragments()]
    return sorted(fragments, key=lambda each: each.path)


def _describe(fragment: "FragmentMetadata", own: frozenset[int]) -> TableFile:
    return TableFile(
        path=fragment_path(fragment.id),
        identity=_identity(fragment, own),
        num_rows=fragment.num_rows,
        file_bytes=sum(file.file_size_bytes or 0 for file in fragment.files),
    )


def _identity(fragment: "FragmentMetadata", own: frozenset[int]) -> str:
    foreign = sorted(str(file.path) for file in fragment.files if {*file.fields} - own - {-2})
    content = [fragment.id, fragment.physical_rows, foreign, deletions(fragment), overlays(fragment)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def deletions(fragment: "FragmentMetadata") -> Any:
    """What identifies the deleted rows of a fragment; None if there are none."""
    return fragment.deletion_file.asdict() if fragment.deletion_file else None


def overlays(fragment: "FragmentMetadata") -> list[str]:
    """Names of the files that replace cells of a fragment."""
    return [str(each.data_file.path) for each in fragment.overlays]


def files_digest(files: Iterable[TableFile]) -> str:
    """SHA-256 of the paths and identities of fragments: equal if and only if the rows are the same."""
    pairs = sorted((file.path, file.identity) for file in files)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """A schema with plain types, without metadata: string for all kinds of strings, binary likewise."""
    return pa.schema([pa.field(field.name, plain_type(field.type)) for field in schema])


def plain_type(column: pa.DataType) -> pa.DataType:
    """The plain type of a column."""
    if pa.types.is_dictionary(column):
        return plain_type(column.value_type)
    if pa.types.is_large_string(column) or pa.types.is_string_view(column):
        return pa.string()
    if pa.types.is_large_binary(column) or pa.types.is_binary_view(column):
        return pa.binary()
    return column
