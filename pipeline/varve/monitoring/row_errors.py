"""Reasons why rows have no features, as the column `error` holds them.

A null text is a property of the source; every other reason is a failure. Both are counted, and never together. Knows
nothing of models or parts. Invariant: only `null_text` makes reasons that count as null texts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

_NULL_TEXT = "null text in "
# Numbers differ between rows that fail for the same reason: positions, bytes, sizes.
_NUMBER = re.compile(r"(?<![\w-])(0x[0-9a-f]+|\d+)\b")
_MAX_REASONS = 8
_MAX_CHARACTERS = 160
_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class RowErrors:
    """Rows without features.

    Attributes:
        null_texts: number of rows whose text is null.
        failures: number of the other rows without features.
        reasons: reason → number of these failures, the most frequent ones; numbers in a reason are shown as "…".
    """

    null_texts: int
    failures: int
    reasons: dict[str, int] = field(default_factory=dict)


def null_text(column: str) -> str:
    """The reason of a row whose text column is null."""
    return f"{_NULL_TEXT}{column}"


def count_errors(errors: pa.Array | pa.ChunkedArray) -> RowErrors:
    """Count the rows of a column `error`, (R,) strings, null for rows with features."""
    reasons = errors.drop_null()
    distinct = reasons.value_counts().to_pylist()
    failures = [(each["values"], each["counts"]) for each in distinct if not each["values"].startswith(_NULL_TEXT)]
    num_failures = sum(count for _, count in failures)
    merged = merge_reasons({form_of(reason): count} for reason, count in failures)
    return RowErrors(len(reasons) - num_failures, num_failures, merged)


def merge_reasons(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts of reasons; keeps the most frequent ones, since there may be as many reasons as rows."""
    total: Counter[str] = Counter()
    for reasons in counts:
        total.update(reasons)
    return dict(total.most_common(_MAX_REASONS))


def list_reasons(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts, as one line."""
    shown = Counter(reasons).most_common(_MAX_SHOWN)
    return "; ".join(f"{count:,} x {reason}" for reason, count in shown)


def too_many_errors(num_errors: int, max_errors: int | str | None, limit: int, reasons: Mapping[str, int]) -> str:
    """The message of a run that more rows failed in than the limit allows.

    Args:
        num_errors: rows that failed.
        max_errors: the job's output.max_errors.
        limit: the number of rows that it allows.
        reasons: reason → rows, the most frequent ones.
    """
    allowed = f"{max_errors}" if max_errors == limit else f"{max_errors} ({limit:,} rows)"
    return (
        f"{num_errors:,} rows failed, more than output.max_errors: {allowed}. Most frequent: {list_reasons(reasons)}. "
        "Fix the cause, or set output.max_errors to a higher number or share, or to null for no limit"
    )


def form_of(reason: str) -> str:
    """A reason without the numbers that differ between rows, as one line of at most 160 characters."""
    line = " ".join(_NUMBER.sub("…", reason).split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[: _MAX_CHARACTERS - 1]}…"
