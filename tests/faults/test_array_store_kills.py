"""Builders of npy, fbin, ndjson and usearch are killed on a store that fails: the published bytes are the same."""

import multiprocessing
import random
import signal

import pytest

from tests.faults.folder_build import TARGETS, contents, run, run_until_done
from tests.index_sources import write_source
from varve.storage.object_store import Storage

FAULTS = {"slow_down": 0.15, "reset": 0.08, "lost": 0.1}


@pytest.mark.parametrize("name", TARGETS)
def test_killed_builders_on_a_failing_store_publish_the_same_bytes(container, faulty, monkeypatch, tmp_path, name):
    path = write_source(tmp_path / "run")
    run(path, str(tmp_path / "undisturbed"), name)
    address = f"{container('radosgw')}/index"
    control = faulty("radosgw")
    monkeypatch.setenv("AWS_ENDPOINT_URL", control.endpoint)
    control.faults(**FAULTS, seed=1)
    spawned = multiprocessing.get_context("spawn")  # with the environment of this test
    codes = run_until_done(spawned, (path, address, name), random.Random(name), rounds=1)
    counts = control.counts()
    control.faults()
    assert -signal.SIGKILL in codes
    assert min(counts[fault] for fault in FAULTS) > 0
    assert contents(Storage(address)) == contents(Storage(str(tmp_path / "undisturbed")))
