"""The columns of a source and their types.

Files may differ, so a few of them are inspected: the first rows of CSV and JSON, the footers of Parquet. The job's
`source.types` has priority. Knows nothing of shards. Invariant: columns that a job does not name have no influence.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
from datasets import DatasetBuilder, Features, IterableDataset, Json, Value
from datasets.table import table_cast

from varve.config.source import Source
from varve.errors import JobError
from varve.source.csv_files import infer_csv_columns
from varve.source.error_messages import as_job_errors
from varve.source.file_columns import check_present, check_unique
from varve.source.file_metadata import read_footer
from varve.source.hf_builder import stream
from varve.source.hive_columns import read_hive_columns
from varve.source.json_files import json_options, read_first_objects
from varve.source.json_types import infer_columns
from varve.source.readers import open_members

# Formats in which each file has its own types.
_TYPED_PER_FILE = frozenset({"csv", "json", "parquet"})
_MAX_INSPECTED_FILES = 8
# How much of each file is inspected: bytes of JSON, rows of CSV.
_HEAD_BYTES = 1 << 20
_HEAD_ROWS = 1024
_NULL = Value("null")
_SEPARATE_COLUMN = "Write the text to a column of its own first, in DuckDB for example: SELECT *, {} AS text FROM ..."


def infer_features(builder: DatasetBuilder, files: Sequence[str], spec: Source) -> tuple[Features, pa.Table]:
    """The columns and their types: as the dataset declares them, otherwise as a few of its files have them.

    Returns:
        (all columns, values of the kept columns that the paths hold and no inspected file does: a row per file).

    Raises:
        JobError: the files cannot be read or hold no rows, or a needed column has incompatible types.
    """
    where = ", ".join(spec.locations)
    with as_job_errors(f"source: {where} cannot be read"):
        undeclared = builder.name in _TYPED_PER_FILE and not builder.info.features
        if undeclared and spec.split in (builder.config.data_files or {}):
            positions = np.linspace(0, len(files) - 1, _MAX_INSPECTED_FILES, dtype=int)
            inspected = list(dict.fromkeys(files[int(position)] for position in positions))
            with ThreadPoolExecutor(max_workers=_MAX_INSPECTED_FILES) as threads:
                heads = list(threads.map(lambda uri: _inspect(builder, uri, spec), inspected))
        else:
            inspected, heads = [where], [_features(stream(builder, spec))]
    found = {uri: head for uri, head in zip(inspected, heads, strict=True) if head is not None}
    if not found:
        msg = f"source: {where} holds no rows, so its columns are unknown"
        raise JobError(msg)
    # Any object may lack a key, so a JSON source has every column that the job gives a type.
    is_json = builder.name == "json"
    hive = _hive_columns(files, found, spec) if builder.name in _TYPED_PER_FILE else pa.table({})
    typed = [name for name in spec.types if is_json and name not in hive.column_names]
    names = dict.fromkeys(name for columns in (*found.values(), typed) for name in columns)
    features = Features({name: _declared(name, spec) or _common(name, found, spec, is_json=is_json) for name in names})
    features.update(Features.from_arrow_schema(hive.schema))
    check_columns(features, spec, is_json=is_json)
    if not is_json:
        for uri, columns in found.items():
            with as_job_errors(f"source: {uri} cannot be read"):
                check_present(list(columns), spec.text_columns)
    if builder.name not in {"csv", "json"}:
        _check_casts(features, found, spec)
    return features, hive


def _hive_columns(files: Sequence[str], found: dict[str, Features], spec: Source) -> pa.Table:
    """Values of the kept columns that no inspected file holds, from the paths of all files."""
    stored = {name for columns in found.values() for name in columns}
    names = [name for name in spec.keep if name not in spec.text_columns and name not in stored]
    declared = {name: _declared(name, spec) for name in names}
    return read_hive_columns(files, names, {name: value() for name, value in declared.items() if value})


def _inspect(builder: DatasetBuilder, uri: str, spec: Source) -> Features | None:
    """The columns of one file; None if it is empty."""
    with as_job_errors(f"source: {uri} cannot be read"):
        if builder.name == "parquet":
            return _footer(uri, spec)
        infer = _infer_json if builder.name == "json" else infer_csv_columns
        members = (infer(file, builder.config, spec) for file in open_members(uri))
        return next(filter(None, members), None)


def _infer_json(file: IO[bytes], config: Any, spec: Source) -> Features | None:
    rows = read_first_objects(file, json_options(config, chunksize=_HEAD_BYTES))
    return infer_columns(rows, spec.columns) if rows else None


def _footer(uri: str, spec: Source) -> Features:
    """The columns of a Parquet file. Columns that are not needed get the null type, since they may have any type."""
    schema = read_footer(uri).schema.to_arrow_schema()
    check_unique(schema.names, spec.columns)
    needed = [field.with_type(_storage_type(field.type)) for field in schema if field.name in spec.columns]
    for field in needed:
        _check_kept(field, uri, spec)
    features = Features.from_arrow_schema(pa.schema(needed, schema.metadata))
    return Features({**dict.fromkeys(schema.names, _NULL), **features})


def _check_kept(field: pa.Field, uri: str, spec: Source) -> None:
    """Check that `datasets` knows a column's type: it does not know maps."""
    try:
        Features.from_arrow_schema(pa.schema([field]))
    except ValueError as e:
        if field.name in spec.text_columns:
            raise JobError(_not_text(field.name, field.type, is_json=False)) from e
        msg = (
            f"source.keep: column {field.name!r} of {uri} holds {field.type}, which cannot be kept. "
            "Write it as a list of structs or as JSON text"
        )
        raise JobError(msg) from e


def _features(stream: IterableDataset) -> Features | None:
    if stream.features is not None:
        return stream.features
    first = cast("pa.Table | None", next(iter(stream.with_format("arrow").iter(_HEAD_ROWS)), None))
    return None if first is None else Features.from_arrow_schema(first.schema)


def _declared(name: str, spec: Source) -> Value | None:
    """The type that the job gives a column."""
    if name not in spec.types:
        return None
    try:
        return Value(spec.types[name])
    except ValueError as e:
        msg = (
            f"source.types.{name}: {spec.types[name]!r} is not a type; "
            "expected one such as string, int64, float64, bool or timestamp[s]"
        )
        raise JobError(msg) from e


def _check_casts(features: Features, found: dict[str, Features], spec: Source) -> None:
    """Check that columns can be read as the types that the job gives them."""
    for uri, columns in found.items():
        for name in spec.types.keys() & columns.keys():
            arrow_type = columns.arrow_schema.field(name).type
            try:
                table_cast(pa.table({name: pa.array([], arrow_type)}), Features({name: features[name]}).arrow_schema)
            except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
                if name in spec.text_columns:
                    raise JobError(_not_text(name, arrow_type, is_json=False)) from e
                msg = f"source.types.{name}: in {uri} it holds {arrow_type}, which cannot be read as {spec.types[name]}"
                raise JobError(msg) from e


def _common(name: str, found: dict[str, Features], spec: Source, *, is_json: bool) -> Any:
    """A type that holds the values of a column in every file."""
    types = {uri: features[name] for uri, features in found.items() if features.get(name, _NULL) != _NULL}
    first = next(iter(types.values()), _NULL)
    if name not in spec.columns or all(feature == first for feature in types.values()):
        return first
    are_texts = [_is_text(feature) for feature in types.values()]
    if all(are_texts) or (name in spec.text_columns and any(are_texts)):
        return Value("string")
    try:
        schemas = [Features({name: feature}).arrow_schema for feature in types.values()]
        return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))[name]
    except pa.ArrowTypeError as e:
        found_types = ", ".join(f"{_describe_type(feature)} in {uri}" for uri, feature in types.items())
        is_castable = is_json or all(isinstance(feature, Value) for feature in types.values())
        advice = f"Set its type: source.types: {{{name}: string}}" if is_castable else "Write one type to all files"
        msg = f"source.keep: column {name!r} holds {found_types}. {advice}"
        raise JobError(msg) from e


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in {"string", "large_string", "string_view"}


def _describe_type(feature: Any) -> str:
    if isinstance(feature, Json):
        return "values of several types"
    return "text" if _is_text(feature) else feature.dtype if isinstance(feature, Value) else "nested values"


def check_columns(features: Features, spec: Source, *, is_json: bool) -> None:
    """Check that the job's columns exist and that its text columns hold text.

    Raises:
        JobError: they do not.
    """
    for column in spec.columns:
        if column not in features:
            key = "source.text" if column in spec.text_columns else "source.keep"
            msg = f"{key}: there is no column {column!r} in {spec.dataset}. Its columns: {', '.join(features)}"
            raise JobError(msg)
    for column in spec.text_columns:
        column_type = features.arrow_schema.field(column).type
        allowed = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        if not any(is_allowed(column_type) for is_allowed in allowed):
            raise JobError(_not_text(column, column_type, is_json=is_json))


def _not_text(column: str, arrow_type: pa.DataType, *, is_json: bool) -> str:
    """The message on a text column of another type, with a way to read it."""
    if is_json or not (pa.types.is_nested(arrow_type) or pa.types.is_dictionary(arrow_type)):
        advice = (
            f"To read it as {'JSON ' if pa.types.is_nested(arrow_type) else ''}text: source.types: {{{column}: string}}"
        )
    elif pa.types.is_struct(arrow_type):
        texts = [field.name for field in arrow_type if pa.types.is_string(field.type)] or ["FIELD"]
        advice = _SEPARATE_COLUMN.format(f'"{column}"."{texts[0]}"')
    elif pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        advice = _SEPARATE_COLUMN.format(f"array_to_string(\"{column}\", ' ')")
    else:
        advice = _SEPARATE_COLUMN.format(f'"{column}"::VARCHAR')
    return f"source.text: column {column!r} holds {arrow_type}, not text. {advice}"


def describe_nulls(features: Features, spec: Source) -> tuple[str, ...]:
    """A note on each text column that is null in all of the rows that were inspected."""
    nulls = [name for name in spec.text_columns if features[name] == _NULL]
    return tuple(
        f"source.text: column {name!r} is null in every inspected row. If later rows hold text: "
        f"source.types: {{{name}: string}}"
        for name in nulls
    )


def arrow_schema(features: Features, spec: Source) -> pa.Schema:
    """The columns that are read, without extension types. A text column that is not kept is large_string."""
    types = features.arrow_schema
    texts = {name: pa.large_string() for name in spec.text_columns if name not in spec.keep}
    return pa.schema([(name, texts.get(name, _storage_type(types.field(name).type))) for name in spec.columns])


def _storage_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type with each extension type in it replaced by its storage type."""
    if isinstance(arrow_type, pa.BaseExtensionType):
        return _storage_type(arrow_type.storage_type)
    if pa.types.is_struct(arrow_type):
        return pa.struct([field.with_type(_storage_type(field.type)) for field in arrow_type])
    is_fixed = pa.types.is_fixed_size_list(arrow_type)
    if not pa.types.is_list(arrow_type) and not pa.types.is_large_list(arrow_type) and not is_fixed:
        return arrow_type
    item = arrow_type.value_field.with_type(_storage_type(arrow_type.value_type))
    if is_fixed:
        return pa.list_(item, arrow_type.list_size)
    return pa.list_(item) if pa.types.is_list(arrow_type) else pa.large_list(item)
