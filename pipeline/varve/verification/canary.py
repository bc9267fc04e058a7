"""The rows of a run that are encoded again by plain transformers and compared with what was stored.

Independent on purpose: it shares no code with the encoder. The texts are read from the source again and go through the
reference (reference.py); the vectors are read back from the committed parts. So it proves the whole way, from a row's
text to its stored bytes.
Of a computed column it proves that its value comes from its row alone: the function is given that one row again.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.errors import RunError, one_line
from varve.output.part_file import Part
from varve.output.vectors import read_scales, read_vectors
from varve.planning.plan import Plan
from varve.storage.object_store import Storage
from varve.verification.reference_model import Reference
from varve.verification.udf_recheck import compare_alone, no_difference

ROWS = 16
# Tokens of those rows together: plain transformers runs some hundred or thousand of them in a second.
MOST_TOKENS = 65_536
# How far a vector may be from the reference, as a share of the reference's length (at least 1).
COMPUTE_TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}
# int8 has none: its rounding is at most half a step of the vector's own scale, which is taken off value by value.
STORE_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "int8": 0.0}
# Share of a binary vector's signs that may differ: values next to zero fall either way.
BINARY_TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.1}


def choose(parts: Sequence[Part], rows: int, seed: int) -> list[tuple[int, int]]:
    """(shard, row) of rows to compare: the shortest and the longest text of the run, then others at random."""
    ends: list[tuple[int, int, int]] = []
    sizes = []
    for part in parts:  # once: there may be very many
        sizes.append(part.range.num_rows if part.shortest else 0)
        if part.shortest and part.longest:
            ends += [(tokens, part.shard, row) for row, tokens in (part.shortest, part.longest)]
            ends = [min(ends), max(ends)]
    if not ends:
        return []
    chosen = dict.fromkeys((shard, row) for _, shard, row in ends)
    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    for part in draw.choices(parts, sizes, k=max(0, rows - len(chosen))):
        chosen[part.shard, draw.randrange(part.start, part.stop)] = None
    return list(chosen)


def compare(
    plan: Plan, storage: Storage, parts: Sequence[Part], *, rows: int = ROWS, seed: int | None = None
) -> dict[str, Any]:
    """Encode a sample of a run's rows again and compare every feature.

    Args:
        plan: of the run.
        storage: its output.
        parts: its committed parts.
        rows: how many rows to compare.
        seed: of the random rows; from the job's fingerprint by default.

    Returns:
        {"rows", "passed", "features": {column: {"relative", "max_abs", "tolerance"}}, "computed": {column: the same},
        "failed": [messages]}.

    Raises:
        RunError: a row can't be read again from the source or the output.
    """
    chosen = choose(parts, rows, int(plan.fingerprint[:8], 16) if seed is None else seed)
    reference = Reference(plan.checkpoint, plan) if chosen else None
    worst = {
        column.name: {"relative": 0.0, "max_abs": 0.0, "tolerance": _tolerance(column, plan)}
        for column in plan.features.columns
    }
    worst_computed = {column.name: no_difference(column) for column in plan.computed}
    failed: list[str] = []
    compared = 0
    stored = _stored_rows(storage, parts, chosen)
    for at, row in _source_rows(plan, _that_fit(chosen, stored)):
        assert reference is not None
        compared += 1
        wanted = reference.vectors(_texts(row, plan.job.source.text_columns))
        for column in plan.features.columns:
            got, want = read_vectors(stored[at], column), wanted[column.name]
            relative, max_abs = _differences(column, got, want, _half_step(stored[at], column))
            figures = worst[column.name]
            figures["relative"] = max(figures["relative"], relative)
            figures["max_abs"] = max(figures["max_abs"], max_abs)
            if not relative <= figures["tolerance"]:
                failed.append(
                    f"{column.name} of shard {at[0]}, row {at[1]} differs from plain transformers by {relative:.1e} "
                    f"(allowed {figures['tolerance']:.1e})"
                )
        for column in plan.computed:
            told = compare_alone(column, stored[at], row, worst_computed[column.name])
            failed += [f"{column.name} of shard {at[0]}, row {at[1]} {told}"] if told else []
    return {
        "rows": compared,
        "passed": not failed,
        "features": worst,
        "computed": worst_computed,
        "failed": failed[:20],
    }


def _that_fit(chosen: Sequence[tuple[int, int]], stored: Mapping[tuple[int, int], pa.Table]) -> list[tuple[int, int]]:
    """The first of the rows, and as many others as have `MOST_TOKENS` together; error rows hold nothing to compare."""
    fit: list[tuple[int, int]] = []
    left = MOST_TOKENS
    for at in chosen:
        if stored[at]["error"][0].is_valid:
            continue
        tokens = stored[at]["num_tokens"][0].as_py() or 0
        if tokens <= left or not fit:
            fit.append(at)
            left -= tokens
    return fit


def _tolerance(column: Column, plan: Plan) -> float:
    if column.dtype == "binary":
        return BINARY_TOLERANCE[plan.resolved.dtype]
    return COMPUTE_TOLERANCE[plan.resolved.dtype] + STORE_TOLERANCE[column.dtype]


def _differences(
    column: Column, got: NDArray[np.float32], want: NDArray[np.float32], half_step: NDArray[np.float32] | float
) -> tuple[float, float]:
    """(relative, largest absolute) difference of the worst vector; for binary the share of wrong signs, twice."""
    if got.shape != want.shape:
        return float("inf"), float("inf")
    if column.dtype == "binary":
        wrong = float(np.mean((got > 0) != (want > 0)))
        return wrong, wrong
    beyond = np.maximum(np.abs(got - want) - half_step, 0)
    apart = np.linalg.norm(beyond, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1.0)
    return float(apart.max(initial=0.0)), float(np.abs(got - want).max(initial=0.0))


def _stored_rows(
    storage: Storage, parts: Iterable[Part], chosen: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], pa.Table]:
    """(shard, row) → the row as a table, from the committed parts."""
    wanted = defaultdict(list)
    for shard, row in chosen:
        wanted[shard].append(row)
    found: dict[tuple[int, int], pa.Table] = {}
    for part in parts:
        rows = [row for row in wanted.get(part.shard, ()) if part.start <= row < part.stop]
        if not rows:
            continue
        try:
            table = pq.read_table(pa.BufferReader(storage.read(part.name) or b""))
        except (pa.ArrowException, OSError) as e:
            msg = f"{storage.uri}/{part.name} can't be read back: {one_line(e)}"
            raise RunError(msg) from e
        for row in rows:
            one = table.slice(row - part.start, 1)
            if (one["shard"][0].as_py(), one["row"][0].as_py()) != (part.shard, row):
                msg = f"{storage.uri}/{part.name}: position {row - part.start} does not hold row {row}"
                raise RunError(msg)
            found[part.shard, row] = one.take([0])  # a slice would keep its part in memory
    return found


def _source_rows(plan: Plan, chosen: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """((shard, row), that row) read from the source again."""
    wanted = defaultdict(set)
    for shard, row in chosen:
        wanted[shard].add(row)
    for shard, rows in wanted.items():
        first = 0
        for table in plan.dataset.read(shard):
            for row in sorted(row for row in rows if first <= row < first + len(table)):
                yield (shard, row), table.slice(row - first, 1)
            first += len(table)
            if first > max(rows):
                break


def _texts(row: pa.Table, columns: Sequence[str]) -> list[str]:
    # As bytes: a text that is not UTF-8 was an error row, unless somebody forged it.
    cells = [row[name].cast(pa.large_binary())[0].as_py() for name in columns]
    return [(cell or b"").decode(errors="replace") for cell in cells]


def _half_step(row: pa.Table, column: Column) -> NDArray[np.float32] | float:
    """The most by which int8 rounding moves a value of each vector: (N, 1); 0 for other dtypes."""
    return 0.0 if column.scale_name is None else read_scales(row, column) * np.float32(0.5)
