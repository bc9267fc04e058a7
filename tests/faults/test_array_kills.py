"""Builders of npy, fbin, ndjson and usearch are killed: the published files are those of an undisturbed build."""

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.folder_build import TARGETS, contents, run, run_until_done
from tests.index_sources import write_source
from varve.storage.object_store import Storage

SEEDS = [(TARGETS[seed % len(TARGETS)], seed) for seed in range(20)]


@pytest.fixture(scope="module")
def context():
    """Starts processes in milliseconds: they are forked from a server that has the modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.folder_build", "usearch.index"])
    return context


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, path):
    """Name of a target → its files after a build without a break."""
    folders = {name: tmp_path_factory.mktemp(name) / "index" for name in TARGETS}
    for name, folder in folders.items():
        run(path, str(folder), name)
    return {name: contents(Storage(str(folder))) for name, folder in folders.items()}


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_killed_builders_publish_the_bytes_of_an_undisturbed_build(tmp_path, context, path, undisturbed, name, seed):
    folder = tmp_path / "index"
    codes = run_until_done(context, (path, str(folder), name), random.Random(f"{name} {seed}"))
    assert set(codes) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in codes
    assert contents(Storage(str(folder))) == undisturbed[name]
    for file in folder.rglob("*#*"):  # interrupted uploads, which the next build removes when they are a minute old
        os.utime(file, (0, 0))
    run(path, str(folder), name)
    files = {str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()}
    assert files == set(undisturbed[name])
