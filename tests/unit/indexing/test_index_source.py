"""Positions of a finished output: the p-th vector of its parts, and which row each belongs to."""

import pickle

import numpy as np
import pytest

from tests.index_sources import ERRORS, ROWS, clustered, open_source, write_source
from tests.outputs import column, write_output
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.metric import Metric
from varve.indexing.rows import SparseVectors
from varve.indexing.source import IndexSource, find_feature
from varve.output.run_output import Output
from varve.storage.object_store import Storage

SHARDS = [400, 0, ROWS - 400]


def places() -> list[tuple[int, int]]:
    """(shard, row) of each row of `write_source` without an error."""
    found = [(0, row) for row in range(400)] + [(2, row) for row in range(ROWS - 400)]
    return [place for row, place in enumerate(found) if row not in ERRORS]


def lists(counts, width=4, seed=0, dtype=np.float32) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    values = np.random.default_rng(seed).normal(size=(offsets[-1], width)).astype(dtype)
    return Ragged(values, offsets)


def test_positions_follow_the_parts_without_rows_that_have_errors(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    assert source.starts.tolist() == [0, 149, 299, 399, 399, 547, 697, 847, 997]
    rows = [source.read(part) for part in range(source.num_parts)]
    found = [place for part in rows for place in zip(*(part.ids[n].to_pylist() for n in ("shard", "row")), strict=True)]
    assert found == places()
    assert np.concatenate([part.positions for part in rows]).tolist() == list(range(ROWS - len(ERRORS)))
    assert rows[3].ids.num_rows == 0  # the empty part
    assert rows[3].dense.shape == (0, 32)
    titles = [title for part in rows for title in part.ids["title"].to_pylist()]
    assert titles == [f"Title {row} “é”" for row in range(ROWS) if row not in ERRORS]


def test_vectors_of_a_part_and_of_positions_are_equal(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    whole = np.concatenate([source.read(part).dense for part in range(source.num_parts)])
    assert np.array_equal(whole, np.delete(clustered(ROWS), ERRORS, axis=0))
    order = np.random.default_rng(0).permutation(source.num_vectors)[:300]
    assert np.array_equal(source.dense_at(order), whole[order])
    assert source.dense_at(np.zeros(0, np.int64)).shape == (0, 32)
    repeated = np.array([5, 5, 990, 5])
    assert np.array_equal(source.dense_at(repeated), whole[repeated])


@pytest.mark.parametrize("bounds", [(0, 997), (0, 1), (148, 150), (399, 400), (300, 600), (996, 997), (10, 10)])
def test_blocks_of_positions_are_those_vectors(tmp_path, bounds):
    source = open_source(write_source(tmp_path / "run"))
    whole = np.delete(clustered(ROWS), ERRORS, axis=0)
    blocks = list(source.blocks_of(range(*bounds)))
    assert [first for first, _ in blocks] == [
        bounds[0] + sum(len(block) for _, block in blocks[:number]) for number in range(len(blocks))
    ]
    joined = np.concatenate([np.zeros((0, 32), np.float32), *(block for _, block in blocks)])
    assert np.array_equal(joined, whole[slice(*bounds)])


def test_blocks_of_a_part_are_its_vectors(tmp_path):
    rows = 20_000  # several blocks
    source = open_source(write_source(tmp_path / "run", rows=rows, rows_per_part=rows, shards=[rows]), ())
    blocks = list(source.blocks(0))
    assert len(blocks) > 1
    assert [first for first, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[:-1].tolist()
    assert np.array_equal(np.concatenate([block for _, block in blocks]), source.read(0).dense)


@pytest.mark.parametrize("form", ["windows", "chunks"])
def test_row_with_several_vectors_numbers_them(tmp_path, form):
    counts = [2, 0, 1, 3, 1, 1]
    values = lists(counts)
    definition = column("embedding", 4, pool="mean", layer=12, form=form)
    path = write_output(tmp_path / "run", {definition: values}, {"title": list("abcdef")}, rows_per_part=4, errors=(4,))
    source = open_source(path, ("title",))
    assert source.has_items
    assert source.starts.tolist() == [0, 6, 7]
    first, second = source.read(0), source.read(1)
    assert first.ids.select(["row", "item", "title"]).to_pylist() == [
        {"row": row, "item": item, "title": "abcdef"[row]} for row in range(4) for item in range(counts[row])
    ]
    assert second.ids.to_pylist() == [{"position": 6, "shard": 0, "row": 5, "item": 0, "title": "f"}]
    assert np.array_equal(first.dense, values.values[:6])
    assert np.array_equal(source.dense_at(np.array([6, 0])), values.values[[7, 0]])


def test_late_and_sparse_features_are_lists_of_their_rows(tmp_path):
    late = lists([3, 0, 2, 4, 1, 1], dtype=np.float16)
    offsets = np.array([0, 2, 2, 3, 5, 6, 8])
    sparse = SparseVectors(
        Ragged(np.array([1, 7, 3, 0, 9, 2, 4, 5], np.int32), offsets),
        Ragged(np.arange(1, 9, dtype=np.float32), offsets),
    )
    features = {
        column("colbert", 4, pool="declared", dtype="float16", form="late"): late,
        column("splade", 10, pool="declared", form="sparse"): sparse,
    }
    path = write_output(tmp_path / "run", features, {"title": list("abcdef")}, rows_per_part=4, errors=(2,))
    source = open_source(path, (), "colbert")
    assert (source.kind, source.metric, source.num_vectors) == ("late", Metric("maxsim"), 5)
    kept = [0, 1, 3, 4, 5]
    found = source.at(np.array([4, 0, 1, 2]))
    assert isinstance(found, Ragged)
    assert [found[row].tolist() for row in range(4)] == [
        late[kept[p]].astype(np.float32).tolist() for p in (4, 0, 1, 2)
    ]
    source = open_source(path, (), "splade")
    assert (source.kind, source.metric, source.width) == ("sparse", Metric("dot"), 10)
    found = source.at(np.array([2, 0, 1]))
    assert isinstance(found, SparseVectors)
    assert [found.ids[row].tolist() for row in range(3)] == [sparse.ids[kept[p]].tolist() for p in (2, 0, 1)]
    assert [found.weights[row].tolist() for row in range(3)] == [sparse.weights[kept[p]].tolist() for p in (2, 0, 1)]
    assert len(source.at(np.zeros(0, np.int64))) == 0


def test_sample_is_a_function_of_the_seed(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    one, again, other = (source.sample_positions(100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len({*one}) == 100
    assert (np.diff(one) > 0).all()
    assert source.sample_positions(10_000, 1).tolist() == list(range(997))


@pytest.mark.parametrize("wanted", [1, 64, 65, 700, 997, 5_000])
def test_sample_of_any_number_of_small_parts_is_as_large_as_asked(tmp_path, wanted):
    path = write_output(tmp_path, {column("e", 2): np.ones((997, 2))}, {"id": range(997)}, rows_per_part=1, errors=[3])
    source = open_source(path, (), "e")
    assert len({*source.sample_positions(wanted, 1, max_parts=None)}) == min(wanted, 996)
    assert len({*source.sample_positions(wanted, 1)}) == min(wanted, 64)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Metric("cosine", unit=True)),
        ({"length": 2}, Metric("cosine", unit=False)),
        ({"pool": "declared", "similarity": "dot", "length": 2}, Metric("dot")),
        ({"pool": "declared", "similarity": "euclidean"}, Metric("euclidean")),
        ({"pool": "mean", "similarity": "dot"}, Metric("cosine", unit=True)),  # what was declared is another vector
        ({"pool": "declared", "similarity": "cosine", "length": 2}, Metric("cosine", unit=False)),
    ],
)
def test_metric_is_that_of_the_checkpoint_or_the_cosine(tmp_path, changes, expected):
    vectors = clustered(300) * changes.pop("length", 1)
    definition = column("embedding", 32, pool=changes.pop("pool", "mean"), layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 300}, **changes)
    assert open_source(path, ()).metric == expected


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rounded_vectors_of_length_one_are_recognized(tmp_path, dtype):
    assert open_source(write_source(tmp_path / "run", width=384, dtype=dtype)).metric == Metric("cosine", unit=True)


def test_manhattan_distance_is_refused(tmp_path):
    definition = column("embedding", 32, pool="declared", layer=12)
    path = write_output(tmp_path / "run", {definition: clustered(300)}, {"title": ["a"] * 300}, similarity="manhattan")
    with pytest.raises(JobError, match="Manhattan"):
        open_source(path, ())


def test_feature_is_chosen_if_it_is_the_only_one(tmp_path):
    one, two = (column(name, 32, pool="mean", layer=12) for name in ("one", "two"))
    tokens = column("tokens", 32, pool="declared", form="sparse")
    vectors = clustered(10)
    weights = lists([1] * 10).values[:, 0]
    sparse = SparseVectors(Ragged(np.zeros(10, np.int32), np.arange(11)), Ragged(weights, np.arange(11)))
    dense = write_output(tmp_path / "dense", {one: vectors, tokens: sparse}, {"title": ["a"] * 10})
    assert find_feature(Output.open(dense), None).name == "one"
    assert find_feature(Output.open(dense), "tokens").name == "tokens"
    several = Output.open(write_output(tmp_path / "several", {one: vectors, two: vectors}, {"title": ["a"] * 10}))
    with pytest.raises(JobError, match=r"2 features .*feature \(one, two\)"):
        find_feature(several, None)
    with pytest.raises(JobError, match=r"'three' is not there; it has: one, two"):
        find_feature(several, "three")
    with pytest.raises(JobError, match="'title' is not"):
        find_feature(several, "title")


def test_column_that_was_not_kept_is_refused(tmp_path):
    path = write_source(tmp_path / "run")
    with pytest.raises(JobError, match=r"no kept column 'url'; it has: doc_id, title"):
        open_source(path, ("url",))


@pytest.mark.parametrize("name", ["position", "item"])
def test_kept_column_with_the_name_of_an_index_column_is_refused(tmp_path, name):
    definition = column("embedding", 4, pool="mean", layer=12, form="windows")
    path = write_output(tmp_path / "run", {definition: lists([1, 2])}, {name: ["a", "b"]})
    with pytest.raises(JobError, match=f"'{name}' has the name of a column of the index"):
        open_source(path, (name,))
    assert open_source(path, ()).num_vectors == 3


def test_part_with_other_rows_than_its_record_is_reported(tmp_path):
    path = write_source(tmp_path / "run")
    source = open_source(path)
    starts = source.starts.copy()
    starts[1:] += 1
    wrong = IndexSource(source.output, source.column, source.metric, source.columns, starts)
    for read in (lambda: wrong.read(0), lambda: list(wrong.blocks(0))):
        with pytest.raises(RunError, match="has 149 vectors of embedding, expected 150"):
            read()


def test_missing_part_is_reported(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    name = source.output.manifest.parts[1].name
    Storage(str(tmp_path / "run")).delete([name])
    with pytest.raises(RunError, match=name):
        source.read(1)
    with pytest.raises(RunError, match=name):
        source.dense_at(np.array([200]))
    assert source.dense_at(np.array([0])).shape == (1, 32)


def test_pickled_source_is_small(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    content = pickle.dumps(source)
    assert len(content) < 30_000
    assert np.array_equal(pickle.loads(content).read(2).dense, source.read(2).dense)
