"""The rows that a probe learns from: labels, groups, splits and hand-crafted columns, without any vector.

Knows nothing of models. These columns are small, so they are held in memory; vectors are not (see matrix.py).
Invariant: rows stand in the order of the run, and `used` says which rows of the run they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.probe.data import handcrafted, split
from varve.probe.data.handcrafted import HandCrafted
from varve.probe.data.join import Joined
from varve.probe.data.labels import read_labels
from varve.probe.data.run_output import Output

_LEAST_ROWS = 20
_IMBALANCE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of an output."""

    label: str
    features: tuple[str, ...] = ("all",)
    handcrafted: tuple[str, ...] = ()
    groups: str | None = None
    split: str | None = None  # a column; "random" even if there is a column `split`
    join: str | None = None
    on: str | None = None
    task: str = "auto"  # auto | classification | regression
    class_weights: str = "auto"  # auto | balanced | none
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """What is known of the rows that take part, N of them."""

    used: NDArray[np.bool_]  # (rows of the run,)
    target: NDArray  # (N,) codes of classes, or numbers
    classes: tuple[str, ...]  # empty for numbers
    groups: NDArray[np.int64]  # (N,) codes, 0 to G - 1
    split: NDArray[np.int8]  # (N,)
    columns: tuple[HandCrafted, ...]
    handcrafted: NDArray[np.float32]  # (N, K)
    class_weights: NDArray[np.float32] | None  # (classes,)
    grouped: bool
    left_out: dict[str, int] = field(default_factory=dict)  # reason → rows
    notes: tuple[str, ...] = ()

    @property
    def is_classification(self) -> bool:
        """Whether labels are classes."""
        return bool(self.classes)

    def of(self, side: int) -> NDArray[np.bool_]:
        """(N,) which rows stand in a split."""
        return self.split == side

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        return dict(zip(split.NAMES, np.bincount(self.split, minlength=3).tolist(), strict=True))


def gather(output: Output, question: Question) -> Rows:
    """Read what a probe must know of the rows, and split them.

    Raises:
        JobError: a column is not there or can't be used as it is asked to be.
    """
    notes: list[str] = []
    split_name = _split_name(output, question)
    wanted = (question.label, question.groups, split_name, *question.handcrafted)
    table = _read(output, list(dict.fromkeys(name for name in wanted if name)), question, notes)
    if question.label in question.handcrafted:
        msg = f"--with {question.label}: that is the label itself"
        raise JobError(msg)
    _refuse_nested(table, {"--groups": question.groups, "--split": question.split})
    good, left_out, split_name = _leave_out(table, question, split_name, notes)
    part = table.filter(pa.array(good))
    target, classes = read_labels(question.label, part[question.label], question.task)
    codes, names = _groups(part, question.groups)
    strata = target if classes else split.strata_of(target.astype(np.float64))
    if split_name:
        sides = split.given(split_name, part[split_name], strata, codes, question.seed)
        if question.groups:
            where = f"--split {split_name}" if question.split else f"the column `{split_name}`"
            split.refuse_leaks(sides, codes, names, f"{where}, --groups {question.groups}")
    else:
        sides = split.assign(strata, codes, question.seed)
    _refuse_constant(question.label, target, classes, sides)
    target, classes, fits = _train_classes(target, classes, sides, left_out)
    good[good] = fits
    part, codes, sides = part.filter(pa.array(fits)), codes[fits], sides[fits]
    _refuse_empty(sides, question, classes)
    columns = _learn(part, question.handcrafted, sides, notes)
    return Rows(
        used=good,
        target=target,
        classes=classes,
        groups=np.unique(codes, return_inverse=True)[1],
        split=sides,
        columns=columns,
        handcrafted=handcrafted.encode(columns, part),
        class_weights=_class_weights(question.class_weights, target[sides == split.TRAIN], classes, notes),
        grouped=question.groups is not None,
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=tuple(notes),
    )


def _split_name(output: Output, question: Question) -> str | None:
    if question.split == "random":
        return None
    return question.split or ("split" if "split" in output.kept and question.label != "split" else None)


def _settle_split(question: Question, name: str | None, table: pa.Table, notes: list[str]) -> str | None:
    """A column that is called `split` is taken for one only if it is."""
    if name is None or question.split:
        return name
    if not split.is_split(table[name]):
        return None
    notes.append("the rows are split as the column `split` says (--split random splits them anew)")
    return name


def _read(output: Output, names: Sequence[str], question: Question, notes: list[str]) -> pa.Table:
    """All rows of the run with these columns and `error`, from the run or from the joined table."""
    joined = Joined.read(question.join, question.on) if question.join is not None else None
    there = [name for name in names if name in output.others]
    far = [name for name in names if name not in there]
    for name in far:
        if joined is None or name not in joined.table.column_names:
            in_file = f"; {joined.file} has {', '.join(joined.table.column_names)}" if joined else ""
            msg = f"there is no column {name!r}: beside features the run has {', '.join(output.others)}{in_file}"
            raise JobError(msg)
    if joined and joined.on not in output.schema.names:
        msg = f"--on {joined.on}: the run has no such column: it has {', '.join(output.others)}"
        raise JobError(msg)
    keys = [joined.on] if joined else []
    read = dict.fromkeys(["error", *there, *keys])
    table = pa.concat_tables([table for _, table in output.tables(list(read))])
    if joined and far:
        return joined.beside(table, far, notes)
    if joined:
        notes.append(f"--join {joined.file}: none of its columns is used")
    return table


def _refuse_nested(table: pa.Table, columns: Mapping[str, str | None]) -> None:
    for flag, name in columns.items():
        if name in table.column_names and pa.types.is_nested(table[name].type):
            msg = f"{flag} {name}: it holds {table[name].type}: expected one value to a row"
            raise JobError(msg)


def _leave_out(
    table: pa.Table, question: Question, split_name: str | None, notes: list[str]
) -> tuple[NDArray[np.bool_], dict[str, int], str | None]:
    """(which rows take part, how many do not for which reason, the column that splits them)."""
    errors = table["error"].is_valid().to_numpy()
    good, left_out = ~errors, {"error in the run": int(errors.sum())}

    def need(name: str | None) -> None:
        if name is not None:
            lacking = _is_missing(table[name]) & good
            left_out[f"no {name}"] = int(lacking.sum())
            good[lacking] = False

    need(question.label)
    need(question.groups)
    split_name = _settle_split(question, split_name, table.filter(pa.array(good)), notes)
    need(split_name)
    if good.sum() < _LEAST_ROWS:
        told = "".join(f", {count:,} with {reason}" for reason, count in left_out.items() if count)
        msg = f"{int(good.sum()):,} of {len(good):,} rows can be learned from{told}: at least {_LEAST_ROWS} are needed"
        raise JobError(msg)
    return good, left_out, split_name


def _is_missing(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(R,) where there is no value, or a number that is not finite."""
    values = handcrafted.plain(values)
    if pa.types.is_floating(values.type):
        return ~np.isfinite(values.to_numpy())
    return values.is_null().to_numpy()


def _groups(table: pa.Table, name: str | None) -> tuple[NDArray[np.int64], pa.Array]:
    if name is None:
        return np.arange(table.num_rows), pa.nulls(0)
    plain = table[name].combine_chunks()
    coded = plain if pa.types.is_dictionary(plain.type) else plain.dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary


def _refuse_constant(label: str, target: NDArray, classes: tuple[str, ...], sides: NDArray[np.int8]) -> None:
    """Refuse training rows that are all the same, of which nothing can be learned."""
    train = target[sides == split.TRAIN]
    if len(train) and (train == train[0]).all():
        what = f"is of the class {classes[train[0]]!r}" if classes else f"has {train[0]:g}"
        msg = f"--label {label}: every training row {what}: there is nothing to learn. Split the rows otherwise"
        raise JobError(msg)


def _train_classes(
    target: Any, classes: tuple[str, ...], sides: NDArray[np.int8], left_out: dict[str, int]
) -> tuple[Any, tuple[str, ...], NDArray[np.bool_]]:
    """Without the rows of classes that no training row has: nothing can be learned of them."""
    if not classes:
        return target, classes, np.ones(len(target), np.bool_)
    known = np.bincount(target[sides == split.TRAIN], minlength=len(classes)) > 0
    fits = known[target]
    for code in np.flatnonzero(~known):
        left_out[f"class {classes[code]!r}, which no training row has"] = int((target == code).sum())
    codes = np.cumsum(known) - 1
    return codes[target[fits]].astype(np.int32), tuple(np.array(classes, object)[known].tolist()), fits


def _refuse_empty(sides: NDArray[np.int8], question: Question, classes: tuple[str, ...]) -> None:
    sizes = np.bincount(sides, minlength=len(split.NAMES))
    for name, size in zip(split.NAMES, sizes, strict=True):
        if size < 2:
            few = f": {len(classes):,} classes of {question.label} have too few rows each" if classes else ""
            why = f": the groups of {question.groups} are too few or too large" if question.groups else few
            msg = f"{size} rows would be left for {name}{why}"
            raise JobError(msg)


def _learn(table: pa.Table, names: Sequence[str], sides: NDArray[np.int8], notes: list[str]) -> tuple[HandCrafted, ...]:
    train = table.filter(pa.array(sides == split.TRAIN))
    learned = [handcrafted.learn(name, train[name]) for name in names]
    notes += [note for _, note in learned if note]
    return tuple(column for column, _ in learned if column)


def _class_weights(
    how: str, target: NDArray[np.int32], classes: Mapping | tuple[str, ...], notes: list[str]
) -> NDArray[np.float32] | None:
    """Weights that let every class count the same, where classes are unlike in size or it was asked for."""
    if how == "balanced" and not classes:
        msg = "--class-weights balanced: the label holds numbers: expected classes. Leave it away"
        raise JobError(msg)
    if not classes or how == "none":
        return None
    counts = np.bincount(target, minlength=len(classes))
    if how == "auto" and counts.max() < _IMBALANCE * counts.min():
        return None
    if how == "auto":
        notes.append(
            f"the largest class has {counts.max() / counts.min():,.0f} times the rows of the smallest: classes are "
            "weighted to count the same (--class-weights none: each row counts the same)"
        )
    return (counts.sum() / (len(classes) * counts)).astype(np.float32)
