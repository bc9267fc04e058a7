"""The arithmetic of the simulation of very large runs and of the limits of one driver."""

import pytest

from tests.bench.limits import MEMORY_BYTES, CommitCosts, Costs, Workload, limits
from tests.bench.simulate import Failures, simulate
from varve.planning.part_sizing import LARGEST_PART_BYTES, PART_BYTES

COSTS = Costs(
    driver_s=0.01,
    counter_s=1e-5,
    list_s=1e-5,
    run_memory_bytes=1000.0,
    base_memory_bytes=0.0,
    manifest_bytes=512.0,
    manifest_memory_bytes=6400.0,
    commits={"iceberg": CommitCosts(seconds=0.001, memory_bytes=2000.0, metadata_bytes=100.0)},
)
NEVER = Failures(node_hours=1e12, driver_hours=1e12)
WORKLOAD = Workload(row_bytes=1024.0, rows_per_gpu_s=1024.0, block_rows=8192)


def test_run_without_failures_takes_the_time_of_its_gpus():
    run = simulate(1e9, 8, COSTS, WORKLOAD, NEVER, seed=0)
    assert run.parts == pytest.approx(1e9 * 1024 / PART_BYTES)
    assert run.hours == pytest.approx(1e9 / (8 * 1024) / 3600)
    assert run.hours == pytest.approx(run.gpu_hours)
    assert run.lost_share == 0


def test_run_of_more_gpus_than_a_driver_serves_takes_the_time_of_the_driver():
    run = simulate(1e9, 100_000, COSTS, WORKLOAD, NEVER, seed=0)
    assert run.driver_share > 1
    assert run.hours == pytest.approx(run.parts * COSTS.driver_s / 3600)


def test_failures_add_the_time_that_they_cost():
    run = simulate(1e10, 64, COSTS, WORKLOAD, Failures(node_hours=1.0, driver_hours=10.0), seed=0)
    assert run.hours == pytest.approx(run.gpu_hours / (1 - run.lost_share))
    assert 0 < run.lost_share < 0.5


def test_parts_grow_with_the_source_up_to_the_largest_size():
    assert WORKLOAD.rows_per_part(1e6) * 1024 == PART_BYTES
    assert WORKLOAD.rows_per_part(1e12) * 1024 == LARGEST_PART_BYTES
    assert WORKLOAD.rows_of(1e6) == 1e6 * LARGEST_PART_BYTES / 1024


def test_limits_are_the_bounds_divided_by_the_cost_of_a_part():
    found = {limit.what: limit for limit in limits(COSTS, WORKLOAD)}
    assert found["driver's memory 64 GB"].parts == pytest.approx(MEMORY_BYTES / 1000)
    assert found["commit 1 h, iceberg"].parts == pytest.approx(3_600_000)
    part_s = LARGEST_PART_BYTES / 1024 / 1024
    assert found["driver busy 100 %"].gpus == pytest.approx(part_s / 0.01)
    assert found["driver busy 100 %"].parts is None
