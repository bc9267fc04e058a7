"""Memory of a FAISS index while it is merged and searched: it does not grow with the index."""

import multiprocessing
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.bench.index_scale import GeneratedSource, finish, measured, queries, train
from varve.config.index import Index
from varve.indexing.faiss.faiss_kind import FaissKind
from varve.indexing.faiss.faiss_target import FaissTarget

ROWS, WIDTH = 100_000, 384
INDEX_MB = ROWS * WIDTH * 4 / 1e6
ALLOWED_MB = 64
kept = []


def add(target: FaissTarget, kind, source: GeneratedSource) -> dict:
    for part in range(source.num_parts):
        target.add(kind, source, source.read(part))
    return {}


def nothing() -> dict:
    faiss.omp_set_num_threads(1)
    return {}


def search(target: FaissTarget, kind, source: GeneratedSource) -> dict:
    with target.searcher(kind, source) as searcher:
        found = searcher.search(queries(source, 20), 10, kind.settings[0])
    return {"found": int((found.positions >= 0).sum())}


def read_whole(path: Path) -> dict:
    kept.append(faiss.read_index(str(path)))  # until the last sample: reading takes less time than two samples
    return {"ntotal": kept[0].ntotal}


@pytest.fixture
def anonymous_mb():
    """(task, arguments) → peak anonymous memory of a new process that runs it, in MB above that of an idle one."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        base_mb = pool.apply(measured, (nothing,))["peak_anonymous_mb"]
        yield lambda *task: pool.apply(measured, task)["peak_anonymous_mb"] - base_mb


@pytest.mark.parametrize("name", ["IVF64,Flat", "Flat"])
def test_merging_and_searching_a_large_index_need_little_memory(tmp_path, anonymous_mb, name):
    source = GeneratedSource.of(ROWS, WIDTH, 10_000)
    target = FaissTarget(str(tmp_path), Index(path="generated", to=f"faiss:{tmp_path}", kind=name))
    kind = FaissKind.parse(name).describe(WIDTH, ROWS)
    anonymous_mb(train, target, kind, source)
    anonymous_mb(add, target, kind, source)
    assert anonymous_mb(finish, target, kind, source, 0) < ALLOWED_MB
    path = next(tmp_path.rglob("finished/index.faiss"))
    assert path.stat().st_size > INDEX_MB * 1e6
    assert anonymous_mb(search, target, kind, source) < ALLOWED_MB
    assert anonymous_mb(read_whole, path) > 1.5 * ALLOWED_MB  # the control: the measurement sees an index in memory
    assert np.isclose(kind.bytes_per_vector * ROWS, path.stat().st_size, rtol=0.01)
