"""Checks one part against its record: its bytes, its rows, its numbers.

Knows nothing of other parts. Imports nothing heavy, because it runs in many processes at once.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.encoder.feature_plan import ROW_COLUMNS, Column
from varve.errors import one_line
from varve.output.json_text import parse_object
from varve.output.part_file import Part, count_rows
from varve.output.part_form import PART_KEY, original_schema
from varve.output.part_reader import ImplausiblePartError, read_columns
from varve.output.schema import feature_columns, read_metadata
from varve.output.vectors import flatten, list_offsets, read_sparse, read_vectors
from varve.storage.object_store import ObjectTooLargeError, Storage

# Rounding error of the length of a unit vector by stored dtype; binary vectors are not normalized.
_NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}

# Fields of a record that its footer cannot hold.
_ADDED_LATER = {"file_bytes", "footer_sha256"}


def check_part(storage: Storage, part: Part, expected: pa.Schema | None = None) -> dict[str, list[str]]:
    """Compare a part with its record.

    Args:
        storage: of the output.
        part: its record in the manifest.
        expected: schema of another part, which this one must have too.

    Returns:
        "checksums", "rows" and "numbers" → descriptions of failures.

    Raises:
        RunError: the store failed.
    """
    try:
        content = storage.read_at_most(part.name, part.file_bytes)
    except ObjectTooLargeError:
        content = b""
    if content is None:
        return {"checksums": [f"{part.name} is gone"]}
    if not _is_as_committed(content, part):
        return {"checksums": [f"{part.name}: its bytes differ from the committed ones"]}
    try:  # the footer may be damaged if the record has no hash of it
        return _failures(content, part, expected)
    except ImplausiblePartError as e:
        return {"rows": [f"{part.name}: {e}"]}
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as e:
        return {"checksums": [f"{part.name}: its footer cannot be read: {type(e).__name__}: {one_line(e)}"]}


def _is_as_committed(content: bytes, part: Part) -> bool:
    data, footer = content[: part.data_bytes], content[part.data_bytes :]
    is_whole = len(content) == part.file_bytes and hashlib.sha256(data).hexdigest() == part.data_sha256
    return is_whole and part.footer_sha256 in {None, hashlib.sha256(footer).hexdigest()}


def _failures(content: bytes, part: Part, expected: pa.Schema | None) -> dict[str, list[str]]:
    """Check the content of a part whose bytes are correct."""
    footer = pq.read_metadata(pa.BufferReader(content))
    schema = original_schema(footer)
    metadata, features = read_metadata(schema), feature_columns(schema)
    computed = [column["name"] for column in metadata.get("computed", ())]
    vectors = [name for column in features for name in column.stored_names]
    names = list(dict.fromkeys([*ROW_COLUMNS, *vectors, *computed]))
    table = read_columns(pa.BufferReader(content), names, part.range.num_rows, len(content))
    rows = [*_row_failures(table, part), *_record_failures(table, footer, part)]
    if metadata["fingerprint"] != part.fingerprint:
        rows.append("its fingerprint is not the manifest's")
    if expected is not None and not schema.equals(expected):
        rows.append("its columns are not those of the other parts")
    numbers = [failure for column in features for failure in _number_failures(table, column)]
    numbers += [failure for name in computed for failure in _computed_failures(table, name)]
    return {"rows": [f"{part.name}: {f}" for f in rows], "numbers": [f"{part.name}: {f}" for f in numbers]}


def _row_failures(table: pa.Table, part: Part) -> list[str]:
    failures = []
    if not np.array_equal(table["row"].to_numpy(), np.arange(part.start, part.stop)):
        failures.append(f"its rows are not {part.start} to {part.stop - 1} in order")
    if (table["shard"].to_numpy() != part.shard).any():
        failures.append(f"it holds rows of a shard other than {part.shard}")
    return failures


def _record_failures(table: pa.Table, footer: pq.FileMetaData, part: Part) -> list[str]:
    """Compare the manifest's record of a part with its footer and with its rows."""
    in_footer = parse_object((footer.metadata or {})[PART_KEY])
    recorded = json.loads(json.dumps(part.to_json()))
    counted = json.loads(json.dumps(count_rows(table)))
    failures = [
        f"{key} is {recorded.get(key)} in the manifest, {value} in its footer"
        for key, value in in_footer.items()
        if key not in _ADDED_LATER and recorded.get(key) != value
    ]
    # Older versions recorded fewer counts.
    return failures + [
        f"{key} is {in_footer[key]} in its footer, its rows give {value}"
        for key, value in counted.items()
        if key in in_footer and in_footer[key] != value
    ]


def _number_failures(table: pa.Table, column: Column) -> list[str]:
    """Find missing vectors, NaN or infinity, unit vectors of another length than 1, lists that do not fit together."""
    good = table.select(list(column.stored_names)).filter(table["error"].is_null())
    failures = []
    for name in column.stored_names:
        if lacking := good[name].null_count:
            failures.append(f"{name}: {lacking} rows without an error have no value")
        values = flatten(good[name])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            failures.append(f"{name}: NaN or infinity")
    failures += _list_failures(good, column)
    if column.form == "sparse":
        return failures or _id_failures(good, column)
    if column.normalize and column.dtype in _NORM_TOLERANCE:
        lengths = np.linalg.norm(read_vectors(good, column), axis=1)
        largest_error = float(np.abs(lengths - 1).max(initial=0.0))
        if largest_error > _NORM_TOLERANCE[column.dtype]:
            failures.append(f"{column.name}: the length of a unit vector differs from 1 by {largest_error:.1e}")
    return failures


def _list_failures(good: pa.Table, column: Column) -> list[str]:
    """Find rows whose lists do not belong together: ids and weights, or vectors, ids and offsets of tokens."""
    offsets = {name: list_offsets(good[name]) for name in column.stored_names if pa.types.is_list(good[name].type)}
    first = next(iter(offsets), "")
    return [
        f"{name}: its lists have other lengths than those of {first}"
        for name, starts in offsets.items()
        if not np.array_equal(starts, offsets[first])
    ]


def _id_failures(good: pa.Table, column: Column) -> list[str]:
    """Find ids of a sparse column that are not in the vocabulary, or do not ascend, and weights of 0."""
    ids, weights = read_sparse(good, column)
    failures = [f"{column.stored_names[1]}: a weight is 0"] if (weights.values == 0).any() else []
    if len(ids.values) and not 0 <= ids.values.min() <= ids.values.max() < column.width:
        failures.append(f"{column.stored_names[0]}: ids outside of the vocabulary of {column.width} tokens")
    starts_row = np.zeros(len(ids.values) + 1, np.bool_)
    starts_row[ids.offsets] = True
    if ((np.diff(ids.values) <= 0) & ~starts_row[1:-1]).any():
        failures.append(f"{column.stored_names[0]}: the ids of a row do not ascend")
    return failures


def _computed_failures(table: pa.Table, name: str) -> list[str]:
    """Find NaN or infinity, and values in rows with errors. Functions may return null for other rows too."""
    cells = table[name]
    failures = []
    is_float = pa.types.is_floating(getattr(cells.type, "value_type", cells.type))
    if is_float and not np.isfinite(flatten(cells)).all():
        failures.append(f"{name}: NaN or infinity")
    if len(cells.filter(table["error"].is_valid()).drop_null()):
        failures.append(f"{name}: rows with an error have a value")
    return failures
