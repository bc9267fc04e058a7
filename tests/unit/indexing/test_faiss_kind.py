"""Names, sizes and settings of the kinds of index that the FAISS target builds."""

import numpy as np
import pytest

from tests.index_sources import build, open_source, write_source
from varve.config.index import Index
from varve.errors import JobError
from varve.indexing.faiss.faiss_kind import SUPPORTED, FaissKind, candidates
from varve.indexing.faiss.faiss_target import FaissTarget


def names_of(num_vectors: int) -> list[str]:
    return [kind.name for kind in candidates(num_vectors)]


def test_auto_tries_the_cheapest_build_first():
    assert names_of(10_000) == ["Flat", "HNSW32,SQ8", "IVF400,SQ8", "IVF400,RaBitQ"]
    assert names_of(20_000) == ["HNSW32,SQ8", "IVF565,SQ8", "IVF565,RaBitQ"]
    assert names_of(10_000_000) == ["HNSW32,SQ8", "IVF12649,SQ8", "IVF12649,RaBitQ"]


def test_auto_searches_many_centroids_by_a_graph_and_has_at_most_2_to_the_17():
    assert names_of(100_000_000)[1] == "IVF40000_HNSW32,SQ8"
    assert names_of(10**11)[1] == "IVF131072_HNSW32,SQ8"


def test_auto_works_for_the_smallest_sources():
    for num_vectors in (1, 2, 3, 17):
        for kind in candidates(num_vectors):
            kind.check(32, num_vectors)


@pytest.mark.parametrize(
    "name",
    ["flat", "IVF,SQ8", "IVF64", "IVF64,PQ8", "PQ8", "HNSW", "HNSW32,PQ8", "OPQ8,IVF64,PQ8x4", "LSH", "IVF8,SQ4"],
)
def test_unknown_kind_is_refused_with_the_list(name):
    with pytest.raises(JobError) as refused:
        FaissKind.parse(name)
    assert repr(name) in str(refused.value)
    assert SUPPORTED in str(refused.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IVF2000,SQ8", "2000 lists for 1,000 vectors"),
        ("IVF0,SQ8", "0 lists"),
        ("HNSW2", "2 links"),
        ("HNSW999,SQ8", "999 links"),
        ("IVF8,PQ5x8", "1, 2, 4, 8, 16, 32"),
        ("IVF8,PQ0x8", "by 0"),
        ("IVF8,PQ8x3", "3 bits"),
        ("IVF8,PQ8x12", "12 bits for 1,000 vectors"),
    ],
)
def test_kind_that_does_not_fit_the_vectors_is_refused_with_the_bounds(name, expected):
    with pytest.raises(JobError, match=expected):
        FaissKind.parse(name).check(32, 1000)


@pytest.mark.parametrize("name", ["Flat", "HNSW32,SQ8", "IVF16,SQ8"])
def test_settings_rise(name):
    settings = FaissKind.parse(name).describe(32, 1000).settings
    values = [tuple(setting.values()) for setting in settings]
    assert values == sorted(set(values))


def test_settings_are_within_the_lists():
    assert [s["nprobe"] for s in FaissKind.parse("IVF100,SQ8").describe(32, 1000).settings] == [4, 8, 16, 32, 64]
    assert FaissKind.parse("IVF3,SQ8").describe(32, 1000).settings == ({"nprobe": 3},)
    assert FaissKind.parse("IVF40,RaBitQ").describe(32, 1000).settings[0] == {"nprobe": 16, "rescore": 10}


@pytest.mark.parametrize(
    "name",
    ["Flat", "SQ8", "SQfp16", "HNSW32,SQ8", "HNSW8", "IVF64,Flat", "IVF64,PQ16x4", "IVF64,RaBitQ", "IVF64_HNSW32,SQ8"],
)
def test_size_by_formula_is_that_of_the_file(tmp_path, name):
    source = open_source(write_source(tmp_path / "run", rows=6000, width=64, rows_per_part=2000, shards=[6000]))
    target = FaissTarget(str(tmp_path / "index"), Index(path="run", to="faiss:index", kind=name))
    kind, record = build(target, source, "faiss")
    measured = record.files["index.faiss"]["bytes"] / source.num_vectors
    assert np.isclose(measured, kind.bytes_per_vector, rtol=0.01)
