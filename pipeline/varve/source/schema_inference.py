"""The columns of a source: of what types they are, which a job needs, and what is read made to fit them.

Files need not agree, so a few are looked at: the first rows of CSV and JSON, the footers of Parquet; what the job says
(`source.types`) goes before. Knows nothing of shards or rows. Invariant: columns that a job does not name decide
nothing.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, Features, IterableDataset, Value
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.features import Json

from varve.config.source import Source
from varve.errors import JobError
from varve.source.error_messages import as_job_errors
from varve.source.hf_builder import stream
from varve.source.lenient_readers import another
from varve.storage.fsspec_files import open_file

# Formats of which each file has types of its own.
_OF_FILES = frozenset({"csv", "json", "parquet"})
_LOOKED_AT_FILES = 8
# What is read of each: bytes of JSON, rows of CSV.
_HEAD_BYTES = 1 << 20
_HEAD_ROWS = 1024
_NOTHING = Value("null")


def look(builder: DatasetBuilder, files: Sequence[str], spec: Source) -> Features:
    """The columns and their types: as the dataset declares them, else as a few files show them.

    Raises:
        JobError: the files can't be read or hold no rows, or a column that is needed has types that don't go together.
    """
    where = ", ".join(spec.locations)
    with as_job_errors(f"source: {where} can't be read"):
        undeclared = builder.name in _OF_FILES and not builder.info.features
        if undeclared and spec.split in (builder.config.data_files or {}):
            some = dict.fromkeys(files[int(at)] for at in np.linspace(0, len(files) - 1, _LOOKED_AT_FILES, dtype=int))
            with ThreadPoolExecutor(max_workers=_LOOKED_AT_FILES) as threads:
                heads = threads.map(lambda uri: _head(builder, uri, spec), some)
                shown = dict(zip(some, heads, strict=True))
        else:
            shown = {where: _features(stream(builder, spec))}
    seen = {uri: head for uri, head in shown.items() if head is not None}
    if not seen:
        msg = f"source: {where} holds no rows, so its columns are not known"
        raise JobError(msg)
    # An object may lack any key, so JSON holds whatever the job gives a type; other formats say what they hold.
    named = spec.types if builder.name == "json" else {}
    names = dict.fromkeys(name for columns in (*seen.values(), named) for name in columns)
    return Features({name: _named(name, spec) or _common(name, seen, spec) for name in names})


def _head(builder: DatasetBuilder, uri: str, spec: Source) -> Features | None:
    """What one file shows; None where it is empty."""
    with as_job_errors(f"source: {uri} can't be read"):
        return _footer(uri, spec) if builder.name == "parquet" else _first_rows(builder, uri, spec)


def _footer(uri: str, spec: Source) -> Features:
    """The columns of a Parquet file; of those that are not needed, which may be of any type, the names alone."""
    with open_file(uri) as file:
        schema = pq.read_schema(file)
    needed = pa.schema([field.with_type(_plain(field.type)) for field in schema if field.name in spec.columns])
    with as_job_errors(f"source.keep: a column of {uri} can't be kept"):
        features = Features.from_arrow_schema(needed.with_metadata(schema.metadata))
    return Features({**dict.fromkeys(schema.names, _NOTHING), **features})


def _first_rows(builder: DatasetBuilder, uri: str, spec: Source) -> Features | None:
    files = cast("DataFilesDict", builder.config.data_files)[spec.split]
    one = DataFilesDict({spec.split: DataFilesList([uri], files.origin_metadata)})
    chunksize = _HEAD_BYTES if builder.name == "json" else _HEAD_ROWS
    head = another(builder, type(builder), data_files=one, chunksize=chunksize)
    try:
        return _features(cast("IterableDataset", head.as_streaming_dataset(spec.split)))
    except (StopIteration, pd.errors.EmptyDataError):
        return None


def _features(stream: IterableDataset) -> Features | None:
    if stream.features is not None:
        return stream.features
    first = cast("pa.Table | None", next(iter(stream.with_format("arrow").iter(_HEAD_ROWS)), None))
    return None if first is None else Features.from_arrow_schema(first.schema)


def _named(name: str, spec: Source) -> Value | None:
    """The type that the job gives a column."""
    if name not in spec.types:
        return None
    try:
        return Value(spec.types[name])
    except ValueError as e:
        msg = (
            f"source.types.{name}: {spec.types[name]!r} is no type. Such are string, int64, float64, bool, timestamp[s]"
        )
        raise JobError(msg) from e


def _common(name: str, shown: dict[str, Features], spec: Source) -> Any:
    """The type that holds what every file shows in a column."""
    kinds = {uri: features[name] for uri, features in shown.items() if features.get(name, _NOTHING) != _NOTHING}
    first = next(iter(kinds.values()), _NOTHING)
    if name not in spec.columns or all(kind == first for kind in kinds.values()):
        return first
    texts = [_is_text(kind) for kind in kinds.values()]
    if all(texts) or (name in spec.text_columns and any(texts)):
        return Value("string")
    try:
        schemas = [Features({name: kind}).arrow_schema for kind in kinds.values()]
        return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))[name]
    except pa.ArrowTypeError as e:
        told = ", ".join(f"{_told(kind)} in {uri}" for uri, kind in kinds.items())
        msg = f"source.keep: column {name!r} holds {told}. Say which it is to be: source.types: {{{name}: string}}"
        raise JobError(msg) from e


def _is_text(kind: Any) -> bool:
    return isinstance(kind, Value) and kind.dtype in {"string", "large_string", "string_view"}


def _told(kind: Any) -> str:
    if isinstance(kind, Json):
        return "values of several types"
    return "text" if _is_text(kind) else kind.dtype if isinstance(kind, Value) else "nested values"


def check(features: Features, spec: Source) -> None:
    """Hold that the job's columns are there, and its texts are texts.

    Raises:
        JobError: they are not.
    """
    for column in spec.columns:
        if column not in features:
            key = "source.text" if column in spec.text_columns else "source.keep"
            msg = f"{key}: there is no column {column!r} in {spec.dataset}. Its columns: {', '.join(features)}"
            raise JobError(msg)
    types = features.arrow_schema
    for column in spec.text_columns:
        kind = types.field(column).type
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        if not any(matches(kind) for matches in kinds):
            msg = (
                f"source.text: column {column!r} holds {kind}, not text. "
                f"If it is to be read as text: source.types: {{{column}: string}}"
            )
            raise JobError(msg)


def arrow_schema(features: Features, spec: Source) -> pa.Schema:
    """The columns that are read, as plain Arrow types: JSON that is kept as text is text."""
    types = features.arrow_schema
    texts = {name: pa.large_string() for name in spec.text_columns if name not in spec.keep}
    return pa.schema([(name, texts.get(name, _plain(types.field(name).type))) for name in spec.columns])


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind) and not pa.types.is_fixed_size_list(kind):
        return kind
    item = kind.value_field.with_type(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
