"""Rows → training, validation and test, so that a group never stands on both sides. Pure.

Rows without groups are groups of one. Groups of each class (or tenth of the values) are laid end to end in a seeded
random order, and a group goes where its middle falls: so each split has about its share of every class, whatever
the sizes of groups.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.run_output import positions

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = ("train", "validation", "test")
_ENDS = (0.7, 0.85)  # of the rows; the rest is the test
_WORDS = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "test": TEST,
}  # fmt: skip
_STRATA = 10
_STRATUM_ROWS = 20  # with fewer, a split would get none of a stratum
_SHOWN = 5


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
    # A group of several classes stands with the one in its middle.
    by_group = np.lexsort((strata, groups))
    starts = np.cumsum(sizes) - sizes
    stratum = strata[by_group[starts + sizes // 2]]
    order = np.lexsort((np.random.default_rng(seed).permutation(num_groups), stratum))
    laid = sizes[order].astype(np.float64)
    totals = np.bincount(stratum, weights=sizes)
    before = np.concatenate([[0.0], np.cumsum(totals)])[stratum[order]]
    middles = (np.cumsum(laid) - laid / 2 - before) / totals[stratum[order]]
    found = np.empty(num_groups, np.int8)
    found[order] = np.searchsorted(np.asarray(ends), middles, side="right")
    return found[groups]


def strata_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(R,) which tenth of the values each value is of; of few values, which larger share."""
    strata = max(1, min(_STRATA, len(values) // _STRATUM_ROWS))
    return np.searchsorted(np.quantile(values, np.arange(1, strata) / strata), values)


def is_split(values: pa.ChunkedArray) -> bool:
    """Whether a column holds the names of splits and nothing else."""
    if not is_text(values.type):
        return False
    found = {str(value).lower() for value in values.unique().to_pylist() if value is not None}
    return {"train", "test"} <= {NAMES[_WORDS[word]] for word in found if word in _WORDS} and found <= set(_WORDS)


def given(
    name: str, values: pa.ChunkedArray, strata: NDArray[np.integer], groups: NDArray[np.integer], seed: int
) -> NDArray[np.int8]:
    """The split that a column says; a validation split is taken from the training rows where it names none.

    Raises:
        JobError: it holds other words, or names no training or no test rows.
    """
    unique = values.unique().to_pylist()
    strange = [value for value in unique if str(value).lower() not in _WORDS]
    if strange:
        msg = f"--split {name}: it holds {strange[0]!r}: expected train, validation (val, dev) or test"
        raise JobError(msg)
    codes = positions(values.cast(pa.string()), pa.array([str(value) for value in unique])).to_numpy()
    split = np.array([_WORDS[str(value).lower()] for value in unique], np.int8)[codes]
    for wanted in (TRAIN, TEST):
        if not (split == wanted).any():
            msg = f"--split {name}: no row says {NAMES[wanted]}"
            raise JobError(msg)
    if not (split == VALIDATION).any():
        train = np.flatnonzero(split == TRAIN)
        _, own = np.unique(groups[train], return_inverse=True)
        split[train] = assign(strata[train], own, seed, ends=(0.85, 1.0))
    return split


def refuse_leaks(split: NDArray[np.int8], groups: NDArray[np.integer], names: pa.Array, where: str) -> None:
    """Refuse a split in which a group stands on two sides.

    Raises:
        JobError: with the groups named.
    """
    sides = np.zeros((int(groups.max()) + 1, len(NAMES)), np.bool_)
    sides[groups, split] = True
    torn = np.flatnonzero(sides.sum(axis=1) > 1)
    if len(torn):
        listed = ", ".join(
            f"{names[int(group)].as_py()!r} ({' and '.join(np.array(NAMES)[sides[group]])})" for group in torn[:_SHOWN]
        )
        more = f" and {len(torn) - _SHOWN:,} more" if len(torn) > _SHOWN else ""
        msg = (
            f"{where}: {len(torn):,} group(s) stand on more than one side, so the test would know what was trained on: "
            f"{listed}{more}. Mend that column, or say --split random and rows are split by group"
        )
        raise JobError(msg)
