"""Finds rows without features by their text, and encoded rows with the same text in the parts of a run.

For rows that other writers moved to other files while the run encoded them: a vector is a function of the text.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from varve.backfill.in_place.rows import OwnColumns, read_part_rows
from varve.lake.text_hash import HASH_TYPE, hash_texts
from varve.output.part_table import PartTable
from varve.storage.object_store import Storage


def stale_rows(table: pa.Table, text_columns: Sequence[str], hash_column: str) -> tuple[NDArray[np.bool_], pa.Array]:
    """((R,) whether rows have another hash than that of their text, or none; (R,) hashes of the texts).

    Args:
        table: R rows; all are stale without the column of hashes.
        text_columns: one or two.
        hash_column: of the features.
    """
    hashes = hash_texts([table[name].cast(pa.string()) for name in text_columns])
    if hash_column not in table.column_names:
        return np.ones(len(table), np.bool_), hashes
    stored = table[hash_column].combine_chunks().cast(HASH_TYPE)
    equal = pc.equal(hashes, stored)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    is_same = equal.fill_null(False)  # noqa: FBT003 (the value)
    return ~is_same.to_numpy(zero_copy_only=False), hashes


def find_rows(
    storage: Storage, parts: PartTable, own: OwnColumns, schema: pa.Schema, hashes: pa.Array
) -> tuple[NDArray[np.bool_], pa.Table]:
    """((H,) whether the parts have a text, the encoded rows of the texts that are found, in order).

    The parts are read one after the other; the rows that are found are kept in memory.

    Args:
        storage: of the run.
        parts: in which texts are looked up.
        own: columns.
        schema: of the own columns.
        hashes: (H,) of texts.

    Raises:
        RunError: a part is missing or damaged.
    """
    wanted, found = hashes.unique(), [schema.empty_table()]
    for part in parts:
        if not (part.range.num_rows and len(wanted)):
            continue
        rows = read_part_rows(storage, part, own, schema)
        at = _positions(wanted, rows[own.hash])
        found.append(rows.take(at.drop_null()))
        wanted = wanted.filter(at.is_null())
    rows = pa.concat_tables(found)
    at = _positions(hashes, rows[own.hash])
    return at.is_valid().to_numpy(zero_copy_only=False), rows.take(at.drop_null())


def _positions(hashes: pa.Array, among: pa.ChunkedArray) -> pa.Array:
    return pc.index_in(hashes, value_set=among.combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
