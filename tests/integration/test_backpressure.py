"""The driver keeps nothing of finished blocks, and few blocks wait, however many there are."""

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
def flown(tmp_path_factory):
    """(statistics of blocks that are held, blocks that waited at most) of blocks made at once and taken slowly."""
    folder = tmp_path_factory.mktemp("flown")
    made, taken = folder / "made", folder / "taken"
    made.mkdir()
    taken.mkdir()

    def make(block: pa.Table) -> pa.Table:
        (made / str(uuid4())).touch()
        return block

    def take(block: pa.Table) -> pa.Table:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        number = len(list(taken.iterdir()))
        (taken / f"{number} {len(list(made.iterdir())) - number}").touch()
        return block

    start_ray(Compute())
    one_by_one = {"batch_format": "pyarrow", "batch_size": 1}
    with DataContext.current(make_context()):
        rows = ray.data.range_tensor(BLOCKS, shape=(4096,), override_num_blocks=2)  # 32 kB each: a block of its own
        flow = rows.map_batches(make, num_cpus=0.3, **one_by_one).map_batches(
            take, num_cpus=0.2, concurrency=1, **one_by_one
        )
        assert sum(1 for _ in flow.iter_internal_ref_bundles()) == BLOCKS
    held = sum(type(held) is BlockStats for held in gc.get_objects())  # the flow, still there, would hold them
    return held, max(int(note.name.split()[1]) for note in taken.iterdir())


def test_driver_keeps_no_record_of_blocks_that_are_done(flown):
    held, _ = flown
    assert held < BLOCKS


def test_blocks_do_not_pile_up_before_a_slow_stage(flown):
    _, waited = flown
    assert waited < BLOCKS / 3


def test_options_of_a_dataflow_exist_in_this_ray():
    assert [name for name in OPTIONS if not hasattr(DataContext(), name)] == []


def test_callback_that_raises_costs_a_warning_and_not_the_run(monkeypatch, caplog):
    """As when a private part of Ray has moved."""

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


def test_option_that_ray_has_renamed_costs_a_warning_and_not_the_run(monkeypatch, caplog):
    monkeypatch.setitem(OPTIONS, "an_option_that_does_not_exist", True)
    assert not hasattr(make_context(), "an_option_that_does_not_exist")
    assert [record.levelname for record in caplog.records if record.name.startswith("varve")] == ["WARNING"]
