"""Builders of a FAISS index are killed; the published files are those of an undisturbed build."""

import multiprocessing
import os
import random
import signal
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.faults.faiss_build import MOMENTS, SETTINGS, STEPS, contents, run_stages
from tests.index_sources import clustered, open_source, write_source
from varve.indexing.faiss.faiss_target import FaissTarget

DEATHS = [(step, moment) for step in STEPS for moment in MOMENTS]
SEEDS = [(list(SETTINGS)[seed % len(SETTINGS)], seed) for seed in range(32)]
DEATHS_PER_SEED = 4


@pytest.fixture(scope="module")
def context():
    """Starts processes in milliseconds: they are forked from a server that has the modules and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.faiss_build", "faiss"])
    return context


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, path):
    """name → folder of an index that one process built without a break."""
    folders = {name: tmp_path_factory.mktemp("undisturbed") / "index" for name in SETTINGS}
    for name, folder in folders.items():
        run_stages(path, str(folder), name)
    return folders


def run_together(context, path: str, folder: Path, name: str, builders: list) -> list[int]:
    """Run one process per (seed, death) at once; returns their exit codes."""
    processes = [context.Process(target=run_stages, args=(path, str(folder), name, *builder)) for builder in builders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def clean_later(folder: Path) -> None:
    """Clean when what interrupted uploads left is old enough to belong to no running builder."""
    for path in folder.rglob("*#*"):
        os.utime(path, (0, 0))
    target = FaissTarget(str(folder))
    target.clean(target.published())


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_killed_builders_publish_the_bytes_of_an_undisturbed_build(tmp_path, context, path, undisturbed, name, seed):
    chosen = random.Random(f"{name} {seed}").sample(DEATHS, DEATHS_PER_SEED)
    chosen.sort(key=DEATHS.index)  # otherwise an early death at the end leaves nothing for the later ones
    folder, exits = tmp_path / "index", Counter()
    for number in range(0, DEATHS_PER_SEED, 2):  # two builders at once, each killed at its own moment
        builders = [(100 * seed + number + k, chosen[number + k]) for k in range(2)]
        exits.update(run_together(context, path, folder, name, builders))
    assert exits[-signal.SIGKILL] >= 2, exits
    assert run_together(context, path, folder, name, [(seed, None)]) == [0]
    clean_later(folder)
    assert contents(folder) == contents(undisturbed[name])
    assert not (folder / "_varve/staged").exists()


@pytest.mark.parametrize("name", ["IVF", "RaBitQ"])
def test_each_id_is_in_one_list_once(undisturbed, path, name):
    index = faiss.read_index(str(undisturbed[name] / "index.faiss"))
    sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
    ids = [faiss.rev_swig_ptr(index.invlists.get_ids(n), size).copy() for n, size in enumerate(sizes) if size]
    assert np.array_equal(np.sort(np.concatenate(ids)), np.arange(open_source(path).num_vectors))


def append_without_listing(path: str, file: str, dies_after: int | None) -> None:
    """What a builder does that adds to one index, with no list of the parts that it has added."""
    source = open_source(path)
    for number in range(source.num_parts):
        rows = source.read(number)
        index = faiss.read_index(file)
        if len(rows):
            index.add_with_ids(rows.dense, rows.positions)
        faiss.write_index(index, file)
        if number == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)


def test_control_without_a_listing_has_duplicates(tmp_path, context, path):
    file = str(tmp_path / "index.faiss")
    empty = faiss.index_factory(32, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    empty.train(clustered(1000))
    faiss.write_index(empty, file)
    exits = []
    for dies_after in (2, None):
        process = context.Process(target=append_without_listing, args=(path, file, dies_after))
        process.start()
        process.join()
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL, 0]
    index, source = faiss.read_index(file), open_source(path)
    assert index.ntotal == source.num_vectors + int(source.starts[3])
