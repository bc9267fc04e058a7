"""Rows that crash the process are found; the others keep their values."""

import os
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varve.errors import RunError
from varve.workers.crash_isolation import WORKER_DIED, CrashIsolation

SCHEMA = pa.schema(
    {"value": pa.int64(), "double": pa.int64(), "error": pa.string(), "shard": pa.int32(), "row": pa.int64()}
)
CRASHES = -1


def make_doubler():
    def encode(table: pa.Table, start: int) -> pa.Table:
        values = table["value"].to_pylist()
        if CRASHES in values:
            os._exit(9)
        rows = [
            {"value": v, "double": 2 * v, "error": None, "shard": 4, "row": start + at} for at, v in enumerate(values)
        ]
        return pa.Table.from_pylist(rows, SCHEMA)

    return encode


def make_nothing():
    os._exit(9)


def make_killed_once(mark: str):
    """Dies with the first block, whatever its rows, as if killed from outside."""

    def encode(table: pa.Table, start: int) -> pa.Table:
        if not Path(mark).exists():
            Path(mark).touch()
            os._exit(9)
        rows = [
            {"value": v, "double": v, "error": None, "shard": 4, "row": start + at, "neighbours": len(table)}
            for at, v in enumerate(table["value"].to_pylist())
        ]
        return pa.Table.from_pylist(rows, SCHEMA.append(pa.field("neighbours", pa.int64())))

    return encode


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([CRASHES, 1, 2, 3, 4, 5, 6]), min_size=1, max_size=8))
def test_exactly_the_crashing_rows_become_error_rows(values):
    with CrashIsolation(make_doubler, SCHEMA, 4) as isolation:
        table = isolation.encode(pa.table({"value": values}), 10)
    assert table["row"].to_pylist() == list(range(10, 10 + len(values)))
    assert table["error"].to_pylist() == [WORKER_DIED if value == CRASHES else None for value in values]
    assert table["double"].to_pylist() == [None if value == CRASHES else 2 * value for value in values]
    assert table["value"].to_pylist() == values
    assert isolation.crashing_rows == [10 + at for at, value in enumerate(values) if value == CRASHES]


def test_block_whose_process_was_killed_from_outside_is_encoded_whole(tmp_path):
    with CrashIsolation(partial(make_killed_once, str(tmp_path / "mark")), SCHEMA, 4) as isolation:
        table = isolation.encode(pa.table({"value": list(range(6))}), 0)
    assert table["neighbours"].to_pylist() == [6] * 6
    assert isolation.crashing_rows == []


def test_process_that_cannot_start_is_not_blamed_on_rows():
    with (
        CrashIsolation(make_nothing, SCHEMA, 4) as isolation,
        pytest.raises(RunError, match="could not be started"),
    ):
        isolation.encode(pa.table({"value": [1]}), 0)


@pytest.mark.slow
def test_part_in_which_all_rows_crash_fails_the_run_and_lists_rows():
    with CrashIsolation(make_doubler, SCHEMA, 4) as isolation, pytest.raises(RunError, match="100, 101, 102"):
        isolation.encode(pa.table({"value": [CRASHES] * 17}), 100)
