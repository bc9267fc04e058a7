"""Encodes a sample of rows again with plain transformers and compares the result with the stored features.

Shares no code with the encoder, so that an error there cannot hide: texts are read from the source again and encoded by
`reference_model.py`; vectors are read from the committed parts. The canary therefore covers the whole way from a text
to its stored bytes. Values of computed columns are compared with what the function returns for the row alone.
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
from varve.verification.udf_recheck import compare_alone, tolerance

ROWS = 16
# Limit of the tokens of these rows together: plain transformers encodes some hundreds or thousands per second.
MAX_TOKENS = 65_536
# Allowed distance of a vector from the reference, relative to the length of the reference (at least 1).
COMPUTE_TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}
# Added for the rounding of stored values. 0 for int8, whose rounding error (see `_half_step`) is subtracted per value.
STORE_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "int8": 0.0}
# Allowed share of different signs in a binary vector: the sign of a value near zero is not determined.
BINARY_TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.1}

RowId = tuple[int, int]  # shard, row


def choose(parts: Sequence[Part], rows: int, seed: int) -> list[RowId]:
    """Choose rows to compare: the shortest and the longest text of the run, the others at random."""
    extremes: list[tuple[int, int, int]] = []  # (tokens, shard, row) of the shortest and the longest text
    weights = []
    for part in parts:  # a single pass: there may be very many parts
        weights.append(part.range.num_rows if part.shortest else 0)
        if part.shortest and part.longest:
            extremes += [(tokens, part.shard, row) for row, tokens in (part.shortest, part.longest)]
            extremes = [min(extremes), max(extremes)]
    if not extremes:
        return []
    chosen = dict.fromkeys((shard, row) for _, shard, row in extremes)
    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    for part in draw.choices(parts, weights, k=max(0, rows - len(chosen))):
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
        RunError: a row cannot be read again from the source or the output.
    """
    chosen = choose(parts, rows, int(plan.fingerprint[:8], 16) if seed is None else seed)
    stored = _stored_rows(storage, parts, chosen)
    comparison = _Comparison(plan)
    if selected := _within_token_limit(chosen, stored):
        reference = Reference(plan)
        for row_id, row in _source_rows(plan, selected):
            comparison.add(row_id, stored[row_id], row, reference)
    return comparison.report()


class _Comparison:
    """The largest difference of each column over the compared rows, and the rows that exceed the tolerance."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._num_rows = 0
        self._features = {column.name: _figures(_tolerance(column, plan)) for column in plan.feature_plan.columns}
        self._computed = {column.name: _figures(tolerance(column)) for column in plan.computed}
        self._failed: list[str] = []

    def add(self, row_id: RowId, stored: pa.Table, row: pa.Table, reference: Reference) -> None:
        """Compare one row of the output with its row of the source."""
        self._num_rows += 1
        shard, number = row_id
        vectors = reference.vectors(_texts(row, self._plan.job.source.text_columns))
        for column in self._plan.feature_plan.columns:
            if failure := self._compare_feature(column, stored, vectors[column.name]):
                self._failed.append(f"{column.name} of shard {shard}, row {number} {failure}")
        for column in self._plan.computed:
            relative, max_abs, failure = compare_alone(column, stored, row)
            _update(self._computed[column.name], relative, max_abs)
            if failure:
                self._failed.append(f"{column.name} of shard {shard}, row {number} {failure}")

    def _compare_feature(self, column: Column, stored: pa.Table, want: NDArray[np.float32]) -> str | None:
        relative, max_abs = _differences(column, read_vectors(stored, column), want, _half_step(stored, column))
        figures = self._features[column.name]
        _update(figures, relative, max_abs)
        if relative <= figures["tolerance"]:
            return None
        return f"differs from plain transformers by {relative:.1e} (allowed {figures['tolerance']:.1e})"

    def report(self) -> dict[str, Any]:
        return {
            "rows": self._num_rows,
            "passed": not self._failed,
            "features": self._features,
            "computed": self._computed,
            "failed": self._failed[:20],
        }


def _figures(allowed: float) -> dict[str, float]:
    return {"relative": 0.0, "max_abs": 0.0, "tolerance": allowed}


def _update(figures: dict[str, float], relative: float, max_abs: float) -> None:
    figures["relative"] = max(figures["relative"], relative)
    figures["max_abs"] = max(figures["max_abs"], max_abs)


def _within_token_limit(chosen: Sequence[RowId], stored: Mapping[RowId, pa.Table]) -> list[RowId]:
    """The first row, and further rows up to `MAX_TOKENS` together; rows with errors are skipped."""
    selected: list[RowId] = []
    remaining = MAX_TOKENS
    for row_id in chosen:
        if stored[row_id]["error"][0].is_valid:
            continue
        tokens = stored[row_id]["num_tokens"][0].as_py() or 0
        if tokens <= remaining or not selected:
            selected.append(row_id)
            remaining -= tokens
    return selected


def _tolerance(column: Column, plan: Plan) -> float:
    if column.dtype == "binary":
        return BINARY_TOLERANCE[plan.resolved.dtype]
    return COMPUTE_TOLERANCE[plan.resolved.dtype] + STORE_TOLERANCE[column.dtype]


def _differences(
    column: Column, got: NDArray[np.float32], want: NDArray[np.float32], half_step: NDArray[np.float32] | float
) -> tuple[float, float]:
    """(relative, absolute) difference of the worst vector; for binary the share of different signs, twice."""
    if got.shape != want.shape:
        return float("inf"), float("inf")
    if column.dtype == "binary":
        different = float(np.mean((got > 0) != (want > 0)))
        return different, different
    excess = np.maximum(np.abs(got - want) - half_step, 0)
    relative = np.linalg.norm(excess, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1.0)
    return float(relative.max(initial=0.0)), float(np.abs(got - want).max(initial=0.0))


def _half_step(row: pa.Table, column: Column) -> NDArray[np.float32] | float:
    """The largest rounding error of an int8 value, half a scale: (N, 1) for N vectors; 0 for other dtypes."""
    return 0.0 if column.scale_name is None else read_scales(row, column) * np.float32(0.5)


def _stored_rows(storage: Storage, parts: Iterable[Part], chosen: Sequence[RowId]) -> dict[RowId, pa.Table]:
    """Read each row, as a table, from the committed parts."""
    chosen_rows = defaultdict(list)
    for shard, row in chosen:
        chosen_rows[shard].append(row)
    stored: dict[RowId, pa.Table] = {}
    for part in parts:
        if rows := [row for row in chosen_rows.get(part.shard, ()) if part.start <= row < part.stop]:
            stored |= _rows_of_part(storage, part, rows)
    return stored


def _rows_of_part(storage: Storage, part: Part, rows: Sequence[int]) -> dict[RowId, pa.Table]:
    try:
        table = pq.read_table(pa.BufferReader(storage.read(part.name) or b""))
    except (pa.ArrowException, OSError) as e:
        msg = f"{storage.uri}/{part.name} cannot be read again: {one_line(e)}"
        raise RunError(msg) from e
    stored = {}
    for row in rows:
        position = row - part.start
        one = table.slice(position, 1)
        if one.select(["shard", "row"]).to_pylist() != [{"shard": part.shard, "row": row}]:
            msg = f"{storage.uri}/{part.name}: position {position} does not hold row {row}"
            raise RunError(msg)
        stored[part.shard, row] = one.take([0])  # a slice would keep the whole part in memory
    return stored


def _source_rows(plan: Plan, selected: Sequence[RowId]) -> Iterator[tuple[RowId, pa.Table]]:
    """Yield ((shard, row), the row as a table), read from the source again."""
    selected_rows = defaultdict(set)
    for shard, row in selected:
        selected_rows[shard].add(row)
    for shard, rows in selected_rows.items():
        first = 0
        for table in plan.dataset.read(shard):
            for row in sorted(row for row in rows if first <= row < first + len(table)):
                yield (shard, row), table.slice(row - first, 1)
            first += len(table)
            if first > max(rows):
                break


def _texts(row: pa.Table, columns: Sequence[str]) -> list[str]:
    # As bytes: pyarrow raises for text that is not UTF-8. Such rows have errors and are not compared, unless forged.
    cells = [row[name].cast(pa.large_binary())[0].as_py() for name in columns]
    return [(cell or b"").decode(errors="replace") for cell in cells]
