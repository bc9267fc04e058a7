"""Encodes a sample of rows again with plain transformers and compares the result with the stored features.

Shares no code with the encoder, so that an error there cannot hide: texts are read from the source again and encoded by
`reference_model.py`; vectors are read from the committed parts. The canary therefore covers the whole way from a text
to its stored bytes. Values of computed columns are compared with what the function returns for the row alone, kept
columns and null texts with the source. Of a row with megabytes of text the kept columns alone are compared.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from varve.config.source import Source
from varve.encoder.feature_plan import Column
from varve.output.part_file import Part
from varve.planning.plan import Plan
from varve.source.dataset import Dataset
from varve.storage.object_store import Storage
from varve.verification.feature_difference import difference
from varve.verification.kept_columns import compare_kept, compare_null
from varve.verification.reference_model import Reference
from varve.verification.sampled_rows import (
    RowId,
    choose_rows,
    read_source_rows,
    read_stored_rows,
    rows_with_errors,
    within_token_limit,
)
from varve.verification.udf_recheck import compare_alone, tolerance

ROWS = 16
# plain transformers tokenizes the whole text, in 16 bytes of memory for each of its bytes and more for each token.
MAX_TEXT_BYTES = 4 * 2**20
# Allowed distance of a vector from the reference, relative to the length of the reference (at least 1).
COMPUTE_TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}
# Added for the rounding of stored values. 0 for int8, whose rounding error is subtracted (`feature_difference.py`).
STORE_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "int8": 0.0}
# Allowed share of different signs in a binary vector: the sign of a value near zero is not determined.
BINARY_TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.1}

# Allowed share of pooled token vectors (see `feature_difference.py`) that differ: a few distances that are almost equal
# change the clusters of some tokens, more often if vectors are rounded before they are clustered.
CLUSTER_TOLERANCE = 0.25


def compare(
    plan: Plan, storage: Storage, parts: Sequence[Part], *, rows: int = ROWS, seed: int | None = None
) -> dict[str, Any]:
    """Encode a sample of a run's rows again and compare every column.

    Args:
        plan: of the run.
        storage: its output.
        parts: its committed parts.
        rows: how many rows to compare.
        seed: of the random rows; from the job's fingerprint by default.

    Returns:
        {"rows", "passed", "features": {column: {"relative", "max_abs", "tolerance"}}, "computed": {column: the same},
        "kept": {column: {"different": rows}}, "failed": [messages]}. With 0 rows nothing was proved.

    Raises:
        RunError: a row cannot be read again from the source or the output.
    """
    seed = int(plan.fingerprint[:8], 16) if seed is None else seed
    return compare_rows(plan.dataset, plan.job.source, plan, storage, choose_rows(parts, rows, seed), parts)


def compare_rows(
    dataset: Dataset,
    source: Source,
    plan: Plan | None,
    storage: Storage,
    chosen: Sequence[RowId],
    parts: Iterable[Part],
) -> dict[str, Any]:
    """Compare rows with the source, and with what the plan's model and functions give for them.

    Args:
        dataset: the source.
        source: its section of the job.
        plan: of the run; None compares kept columns and null texts only.
        storage: the output.
        chosen: the rows, see `choose_rows`.
        parts: its committed parts.

    Returns:
        See `compare`.

    Raises:
        RunError: a row cannot be read again from the source or the output.
    """
    stored = read_stored_rows(storage, parts, chosen)
    comparison = Comparison(source, plan)
    selected = [*within_token_limit(chosen, stored), *rows_with_errors(chosen, stored)]
    for row_id, row in read_source_rows(dataset, selected):
        comparison.add("shard {}, row {}".format(*row_id), stored[row_id], row)
    return comparison.report(expected=len(selected))


class Comparison:
    """The largest difference of each column over the compared rows, and the rows that exceed the tolerance."""

    def __init__(self, source: Source, plan: Plan | None) -> None:
        """Compare with what this plan's model and functions give; without a plan with the source alone."""
        self._source, self._plan = source, plan
        self._columns = plan.feature_plan.columns if plan else ()
        self._functions = plan.computed if plan else ()
        self._num_read, self._num_rows = 0, 0  # rows with errors or very long texts are read only
        self._features = {column.name: _figures(_tolerance(column, plan)) for column in self._columns if plan}
        self._computed = {column.name: _figures(tolerance(column)) for column in self._functions}
        self._kept = {name: {"different": 0} for name in source.kept}
        self._failed: list[str] = []

    @cached_property
    def _reference(self) -> Reference | None:
        return Reference(self._plan) if self._plan else None

    def add(self, where: str, stored: pa.Table, row: pa.Table) -> None:
        """Compare one row of the output with its row of the source; `where`: which row, for messages."""
        self._num_read += 1
        failures = compare_kept(self._source.kept, stored, row)
        for name in failures:
            self._kept[name]["different"] += 1
        failures |= compare_null(self._source.text_columns, stored, row)
        text_bytes = sum(row[name].nbytes for name in self._source.text_columns)
        if not stored["error"][0].is_valid and text_bytes <= MAX_TEXT_BYTES:
            self._num_rows += 1
            failures |= self._compare_features(stored, row) | self._compare_functions(stored, row)
        self._failed += [f"{name} of {where} {failure}" for name, failure in failures.items()]

    def _compare_features(self, stored: pa.Table, row: pa.Table) -> dict[str, str]:
        if self._plan is None or self._reference is None:
            return {}
        failures = {}
        vectors = self._reference.vectors(_texts(row, self._plan.job.source.text_columns))
        for column in self._columns:
            head = self._plan.feature_plan.heads.get(column.name)
            relative, max_abs = difference(
                column,
                stored,
                vectors[column.name],
                cluster_tolerance=_vector_tolerance(column, self._plan),
                max_active_dims=head.max_active_dims if head else None,
            )
            figures = self._features[column.name]
            _update(figures, relative, max_abs)
            if not relative <= figures["tolerance"]:
                allowed = f"(allowed {figures['tolerance']:.1e})"
                failures[column.name] = f"differs from plain transformers by {relative:.1e} {allowed}"
        return failures

    def _compare_functions(self, stored: pa.Table, row: pa.Table) -> dict[str, str]:
        failures = {}
        for column in self._functions:
            relative, max_abs, failure = compare_alone(column, stored, row)
            _update(self._computed[column.name], relative, max_abs)
            if failure:
                failures[column.name] = failure
        return failures

    def report(self, expected: int) -> dict[str, Any]:
        """See `compare`; `expected`: number of rows that should have been compared."""
        if self._num_read < expected:
            self._failed.append(f"the source has only {self._num_read} of the {expected} rows to compare")
        return {
            "rows": self._num_rows,
            "passed": not self._failed,
            "features": self._features,
            "computed": self._computed,
            "kept": self._kept,
            "failed": self._failed[:20],
        }


def _figures(allowed: float) -> dict[str, float]:
    return {"relative": 0.0, "max_abs": 0.0, "tolerance": allowed}


def _update(figures: dict[str, float], relative: float, max_abs: float) -> None:
    figures["relative"] = max(figures["relative"], relative)
    figures["max_abs"] = max(figures["max_abs"], max_abs)


def _tolerance(column: Column, plan: Plan) -> float:
    if column.form == "clusters":
        return CLUSTER_TOLERANCE
    if column.dtype == "binary":
        return BINARY_TOLERANCE[plan.resolved.dtype]
    return _vector_tolerance(column, plan)


def _vector_tolerance(column: Column, plan: Plan) -> float:
    return COMPUTE_TOLERANCE[plan.resolved.dtype] + STORE_TOLERANCE.get(column.dtype, 0.0)


def _texts(row: pa.Table, columns: Sequence[str]) -> list[str]:
    # As bytes: pyarrow raises for text that is not UTF-8. Such rows have errors and are not compared, unless forged.
    cells = [row[name].cast(pa.large_binary())[0].as_py() for name in columns]
    return [(cell or b"").decode(errors="replace") for cell in cells]
