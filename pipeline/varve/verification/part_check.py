"""One part against what is recorded of it: its bytes, its rows, its numbers.

Knows nothing of other parts, and imports nothing heavy: many processes do this at once.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.encoder.feature_plan import Column
from varve.errors import one_line
from varve.output.part_file import Part
from varve.output.schema import feature_columns, read_metadata
from varve.output.vectors import flatten, read_vectors
from varve.storage.object_store import Storage

# Rounding of a unit vector's length in each stored dtype; binary has no length.
_NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}


def check_part(storage: Storage, part: Part) -> dict[str, list[str]]:
    """What contradicts a part's record, in words, under "checksums", "rows" and "numbers".

    Raises:
        RunError: the store failed.
    """
    content = storage.read(part.name)
    if content is None:
        return {"checksums": [f"{part.name} is gone"]}
    if not _is_as_committed(content, part):
        return {"checksums": [f"{part.name}: its bytes are not those that were committed"]}
    try:
        return _failures(pq.read_table(pa.BufferReader(content)), part)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as e:  # its record has no hash of its footer
        told = f"its footer can't be read: {type(e).__name__}: {one_line(e)}"
        return {"checksums": [f"{part.name}: {told}"]}


def _is_as_committed(content: bytes, part: Part) -> bool:
    data, footer = content[: part.data_bytes], content[part.data_bytes :]
    is_whole = len(content) == part.file_bytes and hashlib.sha256(data).hexdigest() == part.data_sha256
    return is_whole and part.footer_sha256 in {None, hashlib.sha256(footer).hexdigest()}


def _failures(table: pa.Table, part: Part) -> dict[str, list[str]]:
    """What is wrong with a part whose bytes are right."""
    described = read_metadata(table.schema)
    rows = _row_failures(table, part)
    if described["fingerprint"] != part.fingerprint:
        rows.append("its fingerprint is not the manifest's")
    numbers = [told for column in feature_columns(table.schema) for told in _number_failures(table, column)]
    numbers += [told for column in described.get("computed", ()) for told in _computed_failures(table, column["name"])]
    return {"rows": [f"{part.name}: {t}" for t in rows], "numbers": [f"{part.name}: {t}" for t in numbers]}


def _row_failures(table: pa.Table, part: Part) -> list[str]:
    told = []
    if not np.array_equal(table["row"].to_numpy(), np.arange(part.start, part.stop)):
        told.append(f"its rows are not {part.start} to {part.stop - 1} in order")
    if (table["shard"].to_numpy() != part.shard).any():
        told.append(f"it holds rows of another shard than {part.shard}")
    errors = len(table) - table["error"].null_count
    tokens = int(table["num_tokens"].drop_null().to_numpy().sum(dtype=np.int64))
    if (errors, tokens) != (part.num_errors, part.num_tokens):
        told.append(f"{errors} error rows and {tokens} tokens, recorded are {part.num_errors} and {part.num_tokens}")
    return told


def _number_failures(table: pa.Table, column: Column) -> list[str]:
    """NaN or infinity, missing vectors, wrong lengths of unit vectors."""
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
    """NaN or infinity, values in error rows. A row without error may lack its value: the function said so."""
    cells = table[name].combine_chunks()
    told = []
    if pa.types.is_floating(getattr(cells.type, "value_type", cells.type)):
        told += [] if np.isfinite(flatten(cells.drop_null())).all() else [f"{name}: NaN or infinity"]
    if cells.filter(table["error"].is_valid()).null_count < len(table) - table["error"].null_count:
        told.append(f"{name}: rows with an error have a value")
    return told
