"""Rows that crash the process are found; the others keep their values."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.clashing import run_ones, write_clashing
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


def test_process_imports_no_file_of_the_current_folder(tmp_path):
    """From a script in another folder, so that the current one is on no sys.path before, as in a worker."""
    write_clashing(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/worker.py").write_text(
        "import pyarrow as pa\nfrom tests.unit.workers.test_crash_isolation import *\n"
        "if __name__ == '__main__':\n    with CrashIsolation(make_doubler, SCHEMA, 4) as isolation:\n"
        "        print(isolation.encode(pa.table({'value': [4]}), 0)['double'].to_pylist())\n"
    )
    python = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    argv = [sys.executable, str(tmp_path / "elsewhere/worker.py")]
    done = subprocess.run(argv, cwd=tmp_path, env=python, capture_output=True, text=True, check=False)
    assert done.stdout == "[8]\n", done.stderr
    assert run_ones(tmp_path) == []


@pytest.mark.slow
def test_part_in_which_all_rows_crash_fails_the_run_and_lists_rows():
    with CrashIsolation(make_doubler, SCHEMA, 4) as isolation, pytest.raises(RunError, match="100, 101, 102"):
        isolation.encode(pa.table({"value": [CRASHES] * 17}), 100)
