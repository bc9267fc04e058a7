"""The driver keeps no record of finished blocks, and few blocks wait between stages, however many there are."""

import gc
import inspect
import time
from uuid import uuid4

import pyarrow as pa
import pytest
import ray
from ray.data import DataContext
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data.block import BlockStats

from varve.cluster.connection import start_ray
from varve.config.compute import Compute
from varve.engine.data_context import OPTIONS, make_context, quiet_ray_data

BLOCKS = 120


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """(block statistics that the driver holds, most blocks that waited) of a fast stage before a slow one."""
    folder = tmp_path_factory.mktemp("blocks")
    produced, consumed = folder / "produced", folder / "consumed"
    produced.mkdir()
    consumed.mkdir()

    def produce(block: pa.Table) -> pa.Table:
        (produced / str(uuid4())).touch()
        return block

    def consume(block: pa.Table) -> pa.Table:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        number = len(list(consumed.iterdir()))
        (consumed / f"{number} {len(list(produced.iterdir())) - number}").touch()
        return block

    start_ray(Compute())
    one_by_one = {"batch_format": "pyarrow", "batch_size": 1}
    with DataContext.current(make_context()):
        rows = ray.data.range_tensor(BLOCKS, shape=(4096,), override_num_blocks=2)  # 32 kB each: one block per row
        dataset = rows.map_batches(produce, num_cpus=0.3, **one_by_one).map_batches(
            consume, num_cpus=0.2, concurrency=1, **one_by_one
        )
        assert sum(1 for _ in dataset.iter_internal_ref_bundles()) == BLOCKS
    held = sum(type(each) is BlockStats for each in gc.get_objects())  # `dataset` is alive and could hold them
    return held, max(int(note.name.split()[1]) for note in consumed.iterdir())


def test_driver_keeps_no_record_of_finished_blocks(counts):
    held, _ = counts
    assert held < BLOCKS


def test_few_blocks_wait_for_a_slow_stage(counts):
    _, waited = counts
    assert waited < BLOCKS / 3


def test_options_of_a_dataflow_exist_in_this_ray():
    assert [name for name in OPTIONS if not hasattr(DataContext(), name)] == []


def test_callback_that_raises_costs_a_warning_and_not_the_run(monkeypatch, caplog):
    """A private API of Ray that Varve uses has moved."""

    def moved(self):
        if inspect.currentframe().f_back.f_globals["__name__"] == "varve.engine.backpressure":
            raise AttributeError
        return stats(self)

    stats = MapOperator.get_stats
    monkeypatch.setattr(MapOperator, "get_stats", moved)
    start_ray(Compute())
    with quiet_ray_data(make_context()):
        assert ray.data.range(BLOCKS, override_num_blocks=20).map_batches(lambda batch: batch).count() == BLOCKS
    assert [record.levelname for record in caplog.records if record.name.startswith("varve")] == ["WARNING"]


def test_option_that_ray_does_not_have_costs_a_warning_and_not_the_run(monkeypatch, caplog):
    monkeypatch.setitem(OPTIONS, "an_option_that_does_not_exist", True)
    assert not hasattr(make_context(), "an_option_that_does_not_exist")
    assert [record.levelname for record in caplog.records if record.name.startswith("varve")] == ["WARNING"]
