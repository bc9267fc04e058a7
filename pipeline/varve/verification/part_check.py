"""One part against what is recorded of it: its bytes, its rows, its numbers.

Knows nothing of other parts, and imports nothing heavy: many processes do this at once.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.errors import one_line
from varve.output.part_file import Part
from varve.output.schema import METADATA_KEY
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
    described = json.loads((table.schema.metadata or {})[METADATA_KEY])
    rows = _row_failures(table, part)
    if described["fingerprint"] != part.fingerprint:
        rows.append("its fingerprint is not the manifest's")
    numbers = [told for column in described["columns"] for told in _number_failures(table, column)]
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


def _number_failures(table: pa.Table, column: Mapping[str, Any]) -> list[str]:
    """NaN or infinity, missing vectors, wrong lengths of unit vectors."""
    name = column["name"]
    good = table["error"].is_null()
    cells = table[name].filter(good).combine_chunks()
    told = [f"{name}: {cells.null_count} rows without error lack it"] if cells.null_count else []
    values = _flat(cells)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        told.append(f"{name}: NaN or infinity")
    if column["normalize"] and column["dtype"] in _NORM_TOLERANCE and len(values):
        vectors = values.reshape(-1, column["width"]).astype(np.float32)
        if column["dtype"] == "int8":
            vectors = vectors * _flat(table[f"{name}_scale"].filter(good).combine_chunks())[:, None]
        off = float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max())
        if off > _NORM_TOLERANCE[column["dtype"]]:
            told.append(f"{name}: a vector's length is off 1 by {off:.1e}")
    return told


def _computed_failures(table: pa.Table, name: str) -> list[str]:
    """NaN or infinity, values in error rows. A row without error may lack its value: the function said so."""
    cells = table[name].combine_chunks()
    told = []
    if pa.types.is_floating(getattr(cells.type, "value_type", cells.type)):
        told += [] if np.isfinite(_flat(cells.drop_null())).all() else [f"{name}: NaN or infinity"]
    if cells.filter(table["error"].is_valid()).null_count < len(table) - table["error"].null_count:
        told.append(f"{name}: rows with an error have a value")
    return told


def _flat(cells: pa.Array) -> NDArray:
    while isinstance(cells, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        cells = cells.flatten()
    return cells.to_numpy(zero_copy_only=False)
