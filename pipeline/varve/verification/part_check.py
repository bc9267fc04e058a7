"""Checks one part against its record: its bytes, its rows, its numbers.

Knows nothing of other parts. Imports nothing heavy, because it runs in many processes at once.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.encoder.feature_plan import Column
from varve.errors import one_line
from varve.monitoring.row_errors import count_errors
from varve.output.part_file import Part
from varve.output.schema import feature_columns, read_metadata
from varve.output.vectors import flatten, read_vectors
from varve.storage.object_store import Storage

# Rounding error of the length of a unit vector by stored dtype; binary vectors are not normalized.
_NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}


def check_part(storage: Storage, part: Part) -> dict[str, list[str]]:
    """Compare a part with its record; returns "checksums", "rows" and "numbers" → descriptions of failures.

    Raises:
        RunError: the store failed.
    """
    content = storage.read(part.name)
    if content is None:
        return {"checksums": [f"{part.name} is gone"]}
    if not _is_as_committed(content, part):
        return {"checksums": [f"{part.name}: its bytes differ from the committed ones"]}
    try:  # the footer may be damaged if the record has no hash of it
        return _failures(pq.read_table(pa.BufferReader(content)), part)
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        TypeError,
        ValueError,
    ) as e:
        return {"checksums": [f"{part.name}: its footer cannot be read: {type(e).__name__}: {one_line(e)}"]}


def _is_as_committed(content: bytes, part: Part) -> bool:
    data, footer = content[: part.data_bytes], content[part.data_bytes :]
    is_whole = len(content) == part.file_bytes and hashlib.sha256(data).hexdigest() == part.data_sha256
    return is_whole and part.footer_sha256 in {None, hashlib.sha256(footer).hexdigest()}


def _failures(table: pa.Table, part: Part) -> dict[str, list[str]]:
    """Check the content of a part whose bytes are correct."""
    metadata = read_metadata(table.schema)
    rows = _row_failures(table, part)
    if metadata["fingerprint"] != part.fingerprint:
        rows.append("its fingerprint is not the manifest's")
    numbers = []
    for column in feature_columns(table.schema):
        numbers += _number_failures(table, column)
    for computed in metadata.get("computed", ()):
        numbers += _computed_failures(table, computed["name"])
    return {"rows": [f"{part.name}: {f}" for f in rows], "numbers": [f"{part.name}: {f}" for f in numbers]}


def _row_failures(table: pa.Table, part: Part) -> list[str]:
    failures = []
    if not np.array_equal(table["row"].to_numpy(), np.arange(part.start, part.stop)):
        failures.append(f"its rows are not {part.start} to {part.stop - 1} in order")
    if (table["shard"].to_numpy() != part.shard).any():
        failures.append(f"it holds rows of a shard other than {part.shard}")
    errors = count_errors(table["error"])
    tokens = int(table["num_tokens"].drop_null().to_numpy().sum(dtype=np.int64))
    held = (errors.failures, errors.null_texts, tokens)
    if held != (recorded := (part.num_errors, part.num_null_texts, part.num_tokens)):
        counts = "{} failed rows, {} null texts and {} tokens".format
        failures.append(f"it holds {counts(*held)}, but {counts(*recorded)} are recorded")
    return failures


def _number_failures(table: pa.Table, column: Column) -> list[str]:
    """Find missing vectors, NaN or infinity, and unit vectors of another length than 1."""
    names = [name for name in (column.name, column.scale_name) if name]
    good = table.select(names).filter(table["error"].is_null())
    lacking, values = good[column.name].null_count, flatten(good[column.name])
    failures = [f"{column.name}: {lacking} rows without an error have no value"] if lacking else []
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        failures.append(f"{column.name}: NaN or infinity")
    if column.normalize and column.dtype in _NORM_TOLERANCE and len(values):
        lengths = np.linalg.norm(read_vectors(good, column), axis=1)
        largest_error = float(np.abs(lengths - 1).max())
        if largest_error > _NORM_TOLERANCE[column.dtype]:
            failures.append(f"{column.name}: the length of a unit vector differs from 1 by {largest_error:.1e}")
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
