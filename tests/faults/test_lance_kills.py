"""Builders of a Lance dataset are killed; the published rows are those of an undisturbed build, each of them once."""

import multiprocessing
import random
import signal

import lance
import numpy as np
import pytest

from tests.faults.lance_build import DEATHS, run_build
from tests.index_sources import open_source, write_source
from varve.indexing.lance.lance_target import LanceTarget
from varve.indexing.lance.layout import table_of

ROWS = 700
SEEDS = range(20)


@pytest.fixture(scope="module")
def context():
    """Starts processes that are forked from a server without threads; Lance is not in it, for it cannot be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.lance_build"])
    return context


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "run", ROWS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, path):
    """The rows of a build without a break."""
    folder = tmp_path_factory.mktemp("undisturbed") / "index"
    run_build(path, str(folder))
    return lance.dataset(str(folder / "docs.lance")).to_table()


def run_together(context, path: str, folder: str, builders: list) -> list[int]:
    """Run one process per (seed, death) at once; returns their exit codes."""
    processes = [context.Process(target=run_build, args=(path, folder, *builder)) for builder in builders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_undisturbed_rows_are_those_of_the_source(undisturbed, path):
    source = open_source(path)
    assert undisturbed["position"].to_pylist() == list(range(source.num_vectors))
    stored = undisturbed["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 32)
    assert np.array_equal(stored, source.dense_at(np.arange(source.num_vectors)))


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_builders_publish_the_rows_of_an_undisturbed_build(tmp_path, context, path, undisturbed, seed):
    folder = tmp_path / "index"
    deaths = sorted(random.Random(seed).sample(DEATHS, 2))
    # The one that dies later may find its write done by the other, and then ends without a kill.
    exits = run_together(context, path, str(folder), [(seed, deaths[0]), (seed + 100, deaths[1])])
    assert -signal.SIGKILL in exits, exits
    assert run_together(context, path, str(folder), [(seed, None)]) == [0]
    dataset = lance.dataset(str(folder / "docs.lance"))
    assert dataset.to_table().equals(undisturbed)
    (index,) = dataset.describe_indices()
    assert (index.num_rows_indexed, len(index.segments)) == (ROWS - 3, 2)
    target = LanceTarget(str(folder))
    record = target.published()
    assert record is not None
    assert target.verify(record) == []
    assert not (folder / "_varve/staged").exists() or not any((folder / "_varve/staged").rglob("*.json"))


@pytest.mark.parametrize("death", [death for death in DEATHS if death[1] == "after"])
def test_kill_after_each_write_leaves_no_unused_file(tmp_path, context, path, undisturbed, death):
    folder = tmp_path / "index"
    assert run_together(context, path, str(folder), [(1, death)]) == [-signal.SIGKILL]
    assert run_together(context, path, str(folder), [(1, None)]) == [0]
    assert lance.dataset(str(folder / "docs.lance")).to_table().equals(undisturbed)
    record = LanceTarget(str(folder)).published()
    assert record is not None
    found = {str(file.relative_to(folder)) for file in (folder / "docs.lance").rglob("*") if file.is_file()}
    assert found - set(record.files) == {"docs.lance/_versions/latest_version_hint.json"}


def test_control_plain_appends_double_the_rows_of_a_killed_build(tmp_path, path):
    """What a builder does that appends each part, with no list of the parts that it has added."""
    source = open_source(path)
    folder = str(tmp_path / "docs.lance")
    for parts in (range(3), range(source.num_parts)):  # killed after three parts, and started again
        for part in parts:
            rows = source.read(part)
            if len(rows):
                lance.write_dataset(table_of(rows, source), folder, mode="append")
    assert lance.dataset(folder).count_rows() == source.num_vectors + int(source.starts[3])
