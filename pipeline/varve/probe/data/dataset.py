"""The rows that a probe learns from: labels, groups, splits and hand-crafted columns, without vectors.

Knows nothing of models. These columns are small, so they are kept in memory; vectors are not (see feature_matrix.py).
Invariant: rows are in the order of the run, and `used` marks the rows of the run that they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.output.run_output import Output
from varve.probe.data import handcrafted, split
from varve.probe.data.handcrafted import HandCrafted
from varve.probe.data.join import JoinTable
from varve.probe.data.labels import read_labels

_MIN_ROWS = 20
_IMBALANCE = 5  # largest class / smallest class, from which classes are weighted


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which label a probe predicts, from which features, on which rows."""

    label: str
    features: tuple[str, ...] = ("all",)
    handcrafted: tuple[str, ...] = ()
    groups: str | None = None
    split: str | None = None  # a column; "random" ignores a column named `split`
    join: str | None = None  # file with further columns
    on: str | None = None  # key column of that file and the run
    task: str = "auto"  # auto | classification | regression
    class_weights: str = "auto"  # auto | balanced | none
    seed: int = 0


@dataclass(frozen=True)
class LabelledRows:
    """The N rows of a run that are used, without their vectors."""

    used: NDArray[np.bool_]  # (rows of the run,)
    target: NDArray  # (N,) codes of classes, or numbers
    classes: tuple[str, ...]  # empty for numbers
    groups: NDArray[np.int64]  # (N,) codes, 0 to G - 1
    split: NDArray[np.int8]  # (N,)
    columns: tuple[HandCrafted, ...]
    handcrafted: NDArray[np.float32]  # (N, K)
    class_weights: NDArray[np.float32] | None  # (classes,)
    left_out: dict[str, int] = field(default_factory=dict)  # reason → rows
    notes: tuple[str, ...] = ()

    @property
    def is_classification(self) -> bool:
        """Whether labels are classes."""
        return bool(self.classes)

    def in_split(self, which: int) -> NDArray[np.bool_]:
        """(N,) which rows are in a split."""
        return self.split == which

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        return dict(zip(split.NAMES, np.bincount(self.split, minlength=3).tolist(), strict=True))


def sample_rows(numbers: NDArray[np.int64], limit: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """At most `limit` random ones of these row numbers, sorted."""
    if len(numbers) <= limit:
        return numbers
    return np.sort(np.random.default_rng(seed).choice(numbers, limit, replace=False))


def load_rows(output: Output, question: Question) -> LabelledRows:
    """Read all columns of the question except the features, and split the rows.

    Raises:
        JobError: a column is missing or cannot be used as the question asks.
    """
    notes: list[str] = []
    split_name = _split_column(output, question)
    names = (question.label, question.groups, split_name, *question.handcrafted)
    table = _read_columns(output, list(dict.fromkeys(name for name in names if name)), question, notes)
    if question.label in question.handcrafted:
        msg = f"--with {question.label}: that is the label itself"
        raise JobError(msg)
    _check_scalar(table, {"--groups": question.groups, "--split": question.split})
    used, left_out, split_name = _select_rows(table, question, split_name, notes)
    table = table.filter(pa.array(used))
    target, classes = read_labels(question.label, table[question.label], question.task)
    groups, group_names = _encode_groups(table, question.groups)
    strata = target if classes else split.strata_of(target.astype(np.float64))
    if split_name:
        splits = split.read_splits(split_name, table[split_name], strata, groups, question.seed)
        if question.groups:
            where = f"--split {split_name}" if question.split else f"the column `{split_name}`"
            split.check_groups(splits, groups, group_names, f"{where}, --groups {question.groups}")
    else:
        splits = split.assign(strata, groups, question.seed)
    _check_varies(question.label, target[splits == split.TRAIN], classes)
    target, classes, known = _drop_unseen_classes(target, classes, splits, left_out)
    used[used] = known
    table, groups, splits = table.filter(pa.array(known)), groups[known], splits[known]
    _check_sizes(splits, question, classes)
    columns = _fit_handcrafted(table, question.handcrafted, splits, notes)
    return LabelledRows(
        used=used,
        target=target,
        classes=classes,
        groups=np.unique(groups, return_inverse=True)[1],
        split=splits,
        columns=columns,
        handcrafted=handcrafted.encode(columns, table),
        class_weights=_class_weights(question.class_weights, target[splits == split.TRAIN], classes, notes),
        left_out={reason: count for reason, count in left_out.items() if count},
        notes=tuple(notes),
    )


def _split_column(output: Output, question: Question) -> str | None:
    if question.split == "random":
        return None
    return question.split or ("split" if "split" in output.kept_columns and question.label != "split" else None)


def _read_columns(output: Output, names: Sequence[str], question: Question, notes: list[str]) -> pa.Table:
    """All rows of the run with these columns and `error`, from the run or from the joined table."""
    joined = JoinTable.read(question.join, question.on) if question.join is not None else None
    run_names = [name for name in names if name in output.other_columns]
    joined_names = [name for name in names if name not in run_names]
    for name in joined_names:
        if joined is None or name not in joined.table.column_names:
            in_file = f"; {joined.file} has {', '.join(joined.table.column_names)}" if joined else ""
            msg = f"no column {name!r}: besides features the run has {', '.join(output.other_columns)}{in_file}"
            raise JobError(msg)
    if joined and joined.on not in output.schema.names:
        msg = f"--on {joined.on}: the run has no such column: it has {', '.join(output.other_columns)}"
        raise JobError(msg)
    keys = [joined.on] if joined else []
    read = dict.fromkeys(["error", *run_names, *keys])
    table = pa.concat_tables([table for _, table in output.tables(list(read))])
    if joined and joined_names:
        return joined.add_columns(table, joined_names, notes)
    if joined:
        notes.append(f"--join {joined.file}: none of its columns is used")
    return table


def _check_scalar(table: pa.Table, columns: Mapping[str, str | None]) -> None:
    for flag, name in columns.items():
        if name in table.column_names and pa.types.is_nested(table[name].type):
            msg = f"{flag} {name}: it holds {table[name].type}: expected one value per row"
            raise JobError(msg)


def _select_rows(
    table: pa.Table, question: Question, split_name: str | None, notes: list[str]
) -> tuple[NDArray[np.bool_], dict[str, int], str | None]:
    """(which rows are used, how many are left out for which reason, the column that splits them)."""
    errors = table["error"].is_valid().to_numpy()
    used, left_out = ~errors, {"error in the run": int(errors.sum())}

    def require(name: str | None) -> None:
        if name is not None:
            missing = _is_missing(table[name]) & used
            left_out[f"no {name}"] = int(missing.sum())
            used[missing] = False

    require(question.label)
    require(question.groups)
    if split_name and not question.split:  # it may have the name `split` by chance
        if split.is_split(table[split_name].filter(pa.array(used))):
            notes.append("rows are split by the column `split` (--split random splits them anew)")
        else:
            split_name = None
    require(split_name)
    if used.sum() < _MIN_ROWS:
        reasons = "".join(f", {count:,} with {reason}" for reason, count in left_out.items() if count)
        msg = f"{int(used.sum()):,} of {len(used):,} rows can be used{reasons}: at least {_MIN_ROWS} are needed"
        raise JobError(msg)
    return used, left_out, split_name


def _is_missing(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(R,) where a value is null, NaN or infinite."""
    values = handcrafted.decode_dictionary(values)
    if pa.types.is_floating(values.type):
        return ~np.isfinite(values.to_numpy())
    return values.is_null().to_numpy()


def _encode_groups(table: pa.Table, name: str | None) -> tuple[NDArray[np.int64], pa.Array]:
    """((R,) code of each row's group, name of each group); without groups each row is one, without names."""
    if name is None:
        return np.arange(table.num_rows), pa.nulls(0)
    encoded = table[name].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def _check_varies(label: str, train: NDArray, classes: tuple[str, ...]) -> None:
    """Reject training labels that are all the same."""
    if len(train) and (train == train[0]).all():
        what = f"is of the class {classes[train[0]]!r}" if classes else f"has the value {train[0]:g}"
        msg = f"--label {label}: every training row {what}: nothing to learn. Use another split"
        raise JobError(msg)


def _drop_unseen_classes(
    target: Any, classes: tuple[str, ...], splits: NDArray[np.int8], left_out: dict[str, int]
) -> tuple[Any, tuple[str, ...], NDArray[np.bool_]]:
    """(target, classes, which rows stay), without the rows of classes that no training row has."""
    if not classes:
        return target, classes, np.ones(len(target), np.bool_)
    seen = np.bincount(target[splits == split.TRAIN], minlength=len(classes)) > 0
    for code in np.flatnonzero(~seen):
        left_out[f"class {classes[code]!r}, which no training row has"] = int((target == code).sum())
    stays = seen[target]
    codes = np.cumsum(seen) - 1
    return codes[target[stays]].astype(np.int32), tuple(np.array(classes, object)[seen].tolist()), stays


def _check_sizes(splits: NDArray[np.int8], question: Question, classes: tuple[str, ...]) -> None:
    for name, size in zip(split.NAMES, np.bincount(splits, minlength=len(split.NAMES)), strict=True):
        if size < 2:
            few = f": {len(classes):,} classes of {question.label} have too few rows each" if classes else ""
            why = f": the groups of {question.groups} are too few or too large" if question.groups else few
            msg = f"the {name} split would have {size} rows{why}"
            raise JobError(msg)


def _fit_handcrafted(
    table: pa.Table, names: Sequence[str], splits: NDArray[np.int8], notes: list[str]
) -> tuple[HandCrafted, ...]:
    train = table.filter(pa.array(splits == split.TRAIN))
    fitted = [handcrafted.fit_column(name, train[name]) for name in names]
    notes += [note for _, note in fitted if note]
    return tuple(column for column, _ in fitted if column)


def _class_weights(
    mode: str, target: NDArray[np.int32], classes: tuple[str, ...], notes: list[str]
) -> NDArray[np.float32] | None:
    """(classes,) weights by which every class counts the same; None if every row counts the same."""
    if mode == "balanced" and not classes:
        msg = "--class-weights balanced: the label holds numbers, and only classes have weights. Omit it"
        raise JobError(msg)
    if not classes or mode == "none":
        return None
    counts = np.bincount(target, minlength=len(classes))
    if mode == "auto":
        if counts.max() < _IMBALANCE * counts.min():
            return None
        notes.append(
            f"the largest class has {counts.max() / counts.min():,.0f} times as many rows as the smallest: classes are "
            "weighted to count the same (--class-weights none: each row counts the same)"
        )
    return (counts.sum() / (len(classes) * counts)).astype(np.float32)
