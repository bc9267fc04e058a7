"""Near duplicates against all pairs, without an index and through one; groups against a search of components."""

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import build, clustered, open_source
from tests.outputs import column, write_output
from varve.errors import JobError
from varve.indexing.open_target import find_index, open_target
from varve.indexing.source import find_feature
from varve.output.run_output import Output
from varve.retrieval.collection import Collection, open_collection
from varve.retrieval.groups import Groups
from varve.retrieval.near_duplicates import SCHEMA, find_near_duplicates

ROWS, WIDTH = 900, 32
ERRORS = (3, 500)


@pytest.fixture
def path(tmp_path) -> str:
    """An output with copies, near copies and some rows with many near copies."""
    random = np.random.default_rng(0)
    vectors = clustered(ROWS)
    for row in range(0, 300, 3):
        vectors[row + 300] = vectors[row] + random.normal(0, 0.03, WIDTH)
    vectors[700:760] = vectors[10] + random.normal(0, 0.002, (60, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    feature = column("embedding", WIDTH, normalize=True)
    kept = {"doc": [f"d{row}" for row in range(ROWS)]}
    return write_output(tmp_path / "o", {feature: vectors}, kept, rows_per_part=170, errors=ERRORS)


def brute_force(collection: Collection, threshold: float) -> tuple[set[tuple[int, int]], np.ndarray]:
    """All pairs of positions, and the sizes of their groups."""
    source = collection.source
    vectors = source.dense_at(np.arange(source.num_vectors)).astype(np.float64)
    near = np.triu(vectors @ vectors.T >= threshold, 1)
    neighbours = near | near.T
    seen, sizes = set[int](), []
    for start in np.flatnonzero(neighbours.any(axis=0)).tolist():
        group, waiting = set[int](), [] if start in seen else [start]
        while waiting:
            group.add(member := waiting.pop())
            waiting += [other for other in np.flatnonzero(neighbours[member]).tolist() if other not in group]
        seen |= group
        sizes += [len(group)] if group else []
    return set(zip(*(side.tolist() for side in np.nonzero(near)), strict=True)), np.array(sizes)


def collect(collection: Collection, threshold: float, **options):
    tables = [SCHEMA.empty_table()]
    result = find_near_duplicates(collection, threshold, write=tables.append, **options)
    return result, pa.concat_tables(tables)


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.999])
def test_pairs_and_groups_equal_those_of_all_pairs(threshold, path):
    collection = open_collection(path)
    pairs, sizes = brute_force(collection, threshold)
    result, table = collect(collection, threshold)
    found = list(zip(table["position"].to_pylist(), table["other_position"].to_pylist(), strict=True))
    assert len(pairs) > 100
    assert len(found) == len(set(found)) == result.num_pairs
    assert set(found) == pairs
    assert (result.num_groups, result.num_rows, result.largest) == (len(sizes), sizes.sum(), sizes.max())
    assert min(table["score"].to_pylist()) >= threshold
    assert not result.through_index
    assert result.first.equals(table.slice(0, 10))


def test_pairs_name_the_rows_of_the_output(path):
    collection = open_collection(path)
    _, table = collect(collection, 0.95)
    every_row = np.delete(np.arange(ROWS), ERRORS)
    assert np.array_equal(table["row"].to_numpy(), every_row[table["position"].to_numpy()])
    assert np.array_equal(table["other_row"].to_numpy(), every_row[table["other_position"].to_numpy()])


@pytest.mark.parametrize("target", ["npy", "faiss"])
def test_pairs_through_an_index_equal_those_of_all_pairs(target, path, tmp_path):
    source = open_source(path, columns=())
    build(open_target(target, str(tmp_path / "i")), source, target)
    collection = with_index(path, tmp_path)
    pairs, _ = brute_force(collection, 0.95)
    with collection:
        result, table = collect(collection, 0.95, compared_rows=100)
    found = list(zip(table["position"].to_pylist(), table["other_position"].to_pylist(), strict=True))
    assert result.through_index
    assert len(found) == len(set(found))
    assert set(found) <= pairs
    assert len(found) >= (1 if target == "npy" else 0.98) * len(pairs)


def with_index(path: str, tmp_path) -> Collection:
    output = Output.open(path)
    return Collection(output, find_feature(output, None), find_index(str(tmp_path / "i")))


def test_many_vectors_without_an_index_are_refused_with_the_command_that_builds_one(path):
    with pytest.raises(JobError, match=r"898 vectors takes about 0:00 .*\n  varve index .* --feature embedding --to"):
        collect(open_collection(path), 0.95, compared_rows=100)


def test_equal_rows_are_one_group(tmp_path):
    vectors = np.repeat(clustered(1), 300, axis=0)
    path = write_output(tmp_path / "o", {column("e", WIDTH): vectors}, {"doc": np.arange(300)}, rows_per_part=80)
    result, _ = collect(open_collection(path), 0.999)
    assert (result.num_pairs, result.num_groups, result.largest) == (300 * 299 // 2, 1, 300)


def test_equal_rows_through_an_index_are_pairs_once(tmp_path):
    vectors = np.repeat(clustered(1), 400, axis=0)  # more pairs than are checked at once, each found from both sides
    path = write_output(tmp_path / "o", {column("e", WIDTH): vectors}, {"doc": np.arange(400)}, rows_per_part=300)
    build(open_target("npy", str(tmp_path / "i")), open_source(path, columns=()), "npy")
    with with_index(path, tmp_path) as collection:
        result, _ = collect(collection, 0.999, compared_rows=100)
    assert (result.num_pairs, result.num_groups, result.largest) == (400 * 399 // 2, 1, 400)


def test_distinct_rows_have_no_pairs(tmp_path):
    vectors = np.eye(20, WIDTH, dtype=np.float32)
    path = write_output(tmp_path / "o", {column("e", WIDTH): vectors}, {"doc": np.arange(20)})
    result, table = collect(open_collection(path), 0.5)
    assert (result.num_pairs, result.num_groups, result.num_rows, result.largest, len(table)) == (0, 0, 0, 0, 0)


def test_groups_of_random_pairs_do_not_depend_on_their_order():
    random = np.random.default_rng(5)
    pairs = random.integers(0, 500, (2, 400))
    groups, shuffled = Groups(500), Groups(500)
    groups.join(*pairs)
    order = random.permutation(400)
    for some in np.array_split(order, 37):
        shuffled.join(pairs[1, some], pairs[0, some])
    assert np.array_equal(groups.sizes(), shuffled.sizes())
    sets: list[set[int]] = []
    for one, other in pairs.T.tolist():
        joined = {one, other}.union(*(each for each in sets if each & {one, other}))
        sets = [each for each in sets if not each & joined] + [joined]
    assert sorted(groups.sizes()) == sorted(len(each) for each in sets if len(each) > 1)
