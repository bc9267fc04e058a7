"""Assigns rows to training, validation and test, all rows of a group to the same split. Pure.

Rows without groups are groups of one row. The groups of each stratum (a class, or a tenth of the values) are put end to
end in a seeded random order, and the position of a group's middle decides its split. So each split has about its share
of every stratum, whatever the sizes of the groups.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.output.run_output import index_in
from varve.preprocessing.computed_columns import is_text

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = ("train", "validation", "test")
_ENDS = (0.7, 0.85)  # where training and validation end, as shares of the rows
_SPLITS = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "test": TEST,
}  # fmt: skip
_MAX_STRATA = 10
_STRATUM_ROWS = 20  # with fewer rows per stratum a split could get none of one
_MAX_LISTED = 5


def assign(
    strata: NDArray[np.integer], groups: NDArray[np.integer], seed: int, ends: Sequence[float] = _ENDS
) -> NDArray[np.int8]:
    """The split of each row.

    Args:
        strata: (R,) the class of each row; see `strata_of` for numbers.
        groups: (R,) code of each row's group, 0 to G - 1.
        seed: of the order of groups.
        ends: where training and validation end, as shares of the rows.

    Returns:
        (R,) int8 of TRAIN, VALIDATION, TEST; the same in all rows of a group.
    """
    num_groups = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=num_groups)
    # A group with rows of several strata belongs to the median one.
    by_group = np.lexsort((strata, groups))
    starts = np.cumsum(sizes) - sizes
    stratum = strata[by_group[starts + sizes // 2]]
    order = np.lexsort((np.random.default_rng(seed).permutation(num_groups), stratum))
    ordered = sizes[order].astype(np.float64)
    totals = np.bincount(stratum, weights=sizes)
    stratum_starts = np.concatenate([[0.0], np.cumsum(totals)])[stratum[order]]
    middles = (np.cumsum(ordered) - ordered / 2 - stratum_starts) / totals[stratum[order]]
    splits = np.empty(num_groups, np.int8)
    splits[order] = np.searchsorted(np.asarray(ends), middles, side="right")
    return splits[groups]


def strata_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(R,) the tenth of the values that each value belongs to; larger shares if there are few values."""
    strata = max(1, min(_MAX_STRATA, len(values) // _STRATUM_ROWS))
    return np.searchsorted(np.quantile(values, np.arange(1, strata) / strata), values)


def is_split(values: pa.ChunkedArray) -> bool:
    """Whether a column holds only names of splits, among them training and test."""
    if not is_text(values.type):
        return False
    names = {str(value).lower() for value in values.unique().to_pylist() if value is not None}
    return names <= _SPLITS.keys() and {TRAIN, TEST} <= {_SPLITS[name] for name in names}


def read_splits(
    name: str, values: pa.ChunkedArray, strata: NDArray[np.integer], groups: NDArray[np.integer], seed: int
) -> NDArray[np.int8]:
    """The splits that a column names; if it names no validation rows, they are taken from the training rows.

    Raises:
        JobError: the column holds other values, or names no training or no test rows.
    """
    unique = [str(value) for value in values.unique().to_pylist()]
    unknown = [value for value in unique if value.lower() not in _SPLITS]
    if unknown:
        msg = f"--split {name}: it holds {unknown[0]!r}: expected train, validation (val, dev) or test"
        raise JobError(msg)
    codes = index_in(values.cast(pa.string()), pa.array(unique)).to_numpy()
    splits = np.array([_SPLITS[value.lower()] for value in unique], np.int8)[codes]
    for required in (TRAIN, TEST):
        if required not in splits:
            msg = f"--split {name}: it names no {NAMES[required]} rows"
            raise JobError(msg)
    if VALIDATION not in splits:
        train = np.flatnonzero(splits == TRAIN)
        _, train_groups = np.unique(groups[train], return_inverse=True)
        splits[train] = assign(strata[train], train_groups, seed, ends=(0.85, 1.0))
    return splits


def check_groups(splits: NDArray[np.int8], groups: NDArray[np.integer], names: pa.Array, where: str) -> None:
    """Check that all rows of a group are in one split.

    Raises:
        JobError: with the names of groups that are in several splits.
    """
    occurs = np.zeros((int(groups.max()) + 1, len(NAMES)), np.bool_)
    occurs[groups, splits] = True
    leaking = np.flatnonzero(occurs.sum(axis=1) > 1)
    if len(leaking):
        listed = ", ".join(
            f"{names[int(group)].as_py()!r} ({' and '.join(np.array(NAMES)[occurs[group]])})"
            for group in leaking[:_MAX_LISTED]
        )
        more = f" and {len(leaking) - _MAX_LISTED:,} more" if len(leaking) > _MAX_LISTED else ""
        msg = (
            f"{where}: {len(leaking):,} group(s) appear in more than one split (leakage): {listed}{more}. Fix the "
            "column, or pass --split random, which splits by group"
        )
        raise JobError(msg)
