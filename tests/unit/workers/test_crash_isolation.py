"""A part that kills its process: the rows that do so are found, the others keep their values."""

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
KILLS = -1


def make_doubler():
    def encode(table: pa.Table, start: int) -> pa.Table:
        values = table["value"].to_pylist()
        if KILLS in values:
            os._exit(9)
        rows = [
            {"value": v, "double": 2 * v, "error": None, "shard": 4, "row": start + at} for at, v in enumerate(values)
        ]
        return pa.Table.from_pylist(rows, SCHEMA)

    return encode


def make_nothing():
    os._exit(9)


def make_killed_once(mark: str):
    """Dies of the first block it sees, whatever is in it, as if killed from outside."""

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


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([KILLS, 1, 2, 3, 4, 5, 6]), min_size=1, max_size=8))
def test_exactly_the_rows_that_kill_become_error_rows(values):
    with CrashIsolation(make_doubler, SCHEMA, 4) as apart:
        table = apart.encode(pa.table({"value": values}), 10)
    assert table["row"].to_pylist() == list(range(10, 10 + len(values)))
    assert table["error"].to_pylist() == [WORKER_DIED if value == KILLS else None for value in values]
    assert table["double"].to_pylist() == [None if value == KILLS else 2 * value for value in values]
    assert table["value"].to_pylist() == values
    assert apart.killers == [10 + at for at, value in enumerate(values) if value == KILLS]


def test_block_whose_process_was_killed_from_outside_is_encoded_whole(tmp_path):
    with CrashIsolation(partial(make_killed_once, str(tmp_path / "mark")), SCHEMA, 4) as apart:
        table = apart.encode(pa.table({"value": list(range(6))}), 0)
    assert table["neighbours"].to_pylist() == [6] * 6
    assert apart.killers == []


def test_process_that_cannot_start_is_no_fault_of_the_rows():
    with CrashIsolation(make_nothing, SCHEMA, 4) as apart, pytest.raises(RunError, match="no second process"):
        apart.encode(pa.table({"value": [1]}), 0)


def test_part_in_which_everything_kills_ends_the_run_with_names():
    with CrashIsolation(make_doubler, SCHEMA, 4) as apart, pytest.raises(RunError, match="the first are 100, 101, 102"):
        apart.encode(pa.table({"value": [KILLS] * 17}), 100)
