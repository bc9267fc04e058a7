"""Maps of outputs: all rows placed, neighbours as in plain numpy, continued after a kill, refusals, both stores."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import varve
from tests.outputs import column, write_output
from varve import JobError, RunError
from varve.exploration.map.layout import Layout, fit_pca
from varve.exploration.map.make_map import make_map
from varve.exploration.map.sample_search import SampleSearch, unit_length
from varve.storage.object_store import Storage

ROWS, WIDTH, GROUPS, SHARDS = 530, 8, 5, [410, 0, 120]
ERRORS = (3, 411)
HOSTILE = "a '<b>\" \u202e;--"


def make_vectors() -> np.ndarray:
    """Rows in five separate groups: row r is of group r % 5."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(GROUPS, WIDTH))
    return (centres[np.arange(ROWS) % GROUPS] + 0.1 * random.normal(size=(ROWS, WIDTH))).astype(np.float32)


VECTORS = make_vectors()
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
TEXTS = [f"<script>alert({row})</script> \u202e" for row in range(ROWS)]
GOOD = np.delete(np.arange(ROWS), ERRORS)


def write(path: Path | str) -> str:
    features = {column("cls", WIDTH): VECTORS, column("windowed", WIDTH, form="windows"): VECTORS}
    kept = {"text": TEXTS, HOSTILE: [row % GROUPS for row in range(ROWS)], "x": TEXTS}
    return write_output(path, features, kept, errors=ERRORS, shards=SHARDS, rows_per_part=100)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("map") / "out")


@pytest.fixture
def path(source, tmp_path) -> str:
    return shutil.copytree(source, tmp_path / "out").as_posix()


def positions(table) -> np.ndarray:
    return np.stack([table[axis].to_numpy() for axis in "xy"], axis=1)


def share_of_own_group(placed: np.ndarray, k: int = 5) -> float:
    """Share of the k nearest rows of the map that are of the row's group."""
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, 1 : k + 1]
    return float((GOOD[nearest] % GROUPS == GOOD[:, None] % GROUPS).mean())


def trustworthiness(vectors: np.ndarray, placed: np.ndarray, k: int) -> float:
    """Venna & Kaski 2001, by sorting all rows."""
    n = len(vectors)
    ranks = np.argsort(np.argsort(-(vectors @ vectors.T), axis=1), axis=1)
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    np.fill_diagonal(distances, -1)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, 1 : k + 1]
    beyond = np.maximum(np.take_along_axis(ranks, nearest, axis=1) - k, 0).sum()
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * beyond


def test_map_has_every_row_and_nulls_for_errors(path):
    make_map(path, method="pca", neighbours=4, color=HOSTILE, text=True)
    table = varve.open(path).map()
    assert table.column_names == ["shard", "row", "x", "y", "neighbours", HOSTILE, "text"]
    assert table["row"].to_pylist() == [*range(410), *range(120)]
    assert (table["text"].to_pylist(), table[HOSTILE].to_pylist()[:7]) == (TEXTS, [0, 1, 2, 3, 4, 0, 1])
    for name in ("x", "y", "neighbours"):
        assert np.flatnonzero(table[name].is_null()).tolist() == list(ERRORS)


def test_neighbours_are_the_nearest_rows_by_cosine_without_the_row_itself(path):
    make_map(path, method="pca", neighbours=4)
    found = varve.open(path).map("cls")["neighbours"].to_pylist()
    similarity = UNIT @ UNIT.T
    np.fill_diagonal(similarity, -np.inf)
    similarity[:, list(ERRORS)] = -np.inf
    for row in GOOD:
        best = -np.sort(-similarity[row])[:4]
        np.testing.assert_allclose(found[row]["distances"], 1 - best, atol=1e-6)
        np.testing.assert_allclose(similarity[row][found[row]["ids"]], best, atol=1e-6)


def test_pca_is_the_projection_on_the_first_singular_vectors(path):
    make_map(path, method="pca")
    centred = UNIT[GOOD] - UNIT[GOOD].mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    found = positions(varve.open(path).map())[GOOD]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)


@pytest.mark.slow
def test_rows_outside_the_sample_are_placed_with_their_group(path):
    """200 of 528 rows are fitted; the others belong where their group is."""
    pytest.importorskip("umap")
    make_map(path, method="umap", sample_rows=200, neighbours=10)
    placed = positions(varve.open(path).map())[GOOD]
    assert share_of_own_group(placed) > 0.98
    assert trustworthiness(UNIT[GOOD], placed, 10) > 0.85
    ids = {one for row in varve.open(path).map()["neighbours"].to_pylist() if row for one in row["ids"]}
    assert len(ids) <= 200


@pytest.mark.slow
def test_same_seed_gives_the_same_map_and_another_seed_another(path):
    pytest.importorskip("umap")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_map(path, name=name, method="umap", sample_rows=100, neighbours=8, seed=seed)
    one, same, other = (varve.open(path).map(name) for name in "abc")
    assert one.equals(same)
    assert not one["x"].equals(other["x"])


def test_row_is_placed_at_the_median_of_its_five_nearest_rows():
    sample = np.array([[0, 0], [1, 1], [2, 0], [10, 10], [3, 5], [99, 99]], np.float32)
    placed = Layout(sample).place(np.zeros((1, 3), np.float32), np.array([[0, 1, 2, 3, 4, 5]]))
    assert placed.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("use_faiss", [True, False])
def test_search_in_the_sample_is_exact(use_faiss):
    rows, scores = SampleSearch.of(UNIT, use_faiss=use_faiss).nearest(UNIT[:50], 7)
    similarity = UNIT[:50] @ UNIT.T
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, atol=1e-6)
    np.testing.assert_allclose(scores, -np.sort(-similarity, axis=1)[:, :7], atol=1e-6)


def test_zero_vector_and_one_dimension_have_a_place():
    assert unit_length(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert fit_pca(np.array([[1.0], [-1.0]], np.float32)).sample.shape == (2, 2)


def test_interrupted_map_is_continued_with_the_same_bytes(path):
    def stop(written: int, _all: int) -> None:
        if written == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_map(path, method="pca", on_part=stop)
    files = sorted(Path(path, "maps/cls").glob("*.parquet"))
    assert len(files) == 3
    with pytest.raises(JobError, match=r"no finished map\. Run `varve map`"):
        varve.open(path).map()
    changed = [file.stat().st_mtime_ns for file in files]
    make_map(path, method="pca")
    assert [file.stat().st_mtime_ns for file in files] == changed
    make_map(path, name="whole", method="pca")
    for file in Path(path, "maps/whole").glob("*.parquet"):
        assert file.read_bytes() == Path(path, "maps/cls", file.name).read_bytes()


def test_other_values_for_the_same_name_are_refused_and_named(path):
    make_map(path, method="pca")
    assert make_map(path, method="pca").content["num_sampled"] == len(GOOD)
    with pytest.raises(JobError, match=r"is another map: neighbours 15, now 9; seed 0, now 1\. Choose another --name"):
        make_map(path, method="pca", neighbours=9, seed=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"feature": "windowed"}, "windowed has windows vectors. Features that are possible here: cls"),
        ({"feature": "none"}, "no feature 'none'; possible here: cls"),
        ({"color": "none"}, "no column 'none'"),
        ({"color": "x"}, "'x' has the name of a column of the map"),
        ({"color": "cls"}, "--color cls is a feature"),
        ({"method": "tsne"}, "--method: 'tsne' is not allowed: expected auto, umap, pca"),
        ({"neighbours": 1}, "--neighbours: 1 is not allowed"),
        ({"sample_rows": 15}, "--sample: 15 is not allowed"),
        ({"name": "../up"}, "--name: '../up' is not allowed"),
    ],
)
def test_impossible_maps_are_refused_before_anything_is_written(path, options, reason):
    with pytest.raises(JobError, match=reason):
        make_map(path, **options)
    assert not Path(path, "maps").exists()


def test_umap_that_is_not_installed_is_named_and_auto_takes_pca(path, monkeypatch):
    monkeypatch.setattr("varve.exploration.map.make_map.find_spec", lambda _name: None)
    with pytest.raises(JobError, match="needs umap-learn: run pip install"):
        make_map(path, method="umap")
    assert make_map(path).content["method"] == "pca"


def test_map_of_another_run_is_refused(path):
    make_map(path, method="pca")
    record = Path(path, "maps/cls/map.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"manifest_sha256": "0" * 64}))
    with pytest.raises(RunError, match="is a map of another run"):
        varve.open(path).map()


def test_damaged_file_of_a_map_is_refused_and_named(path):
    make_map(path, method="pca")
    file = next(Path(path, "maps/cls").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunError, match=rf"{file.name} cannot be read"):
        varve.open(path).map()


@pytest.mark.parametrize("kind", [pa.float64(), None])
@pytest.mark.parametrize("name", ["x", "text"])
def test_file_of_a_map_with_other_columns_than_the_others_is_refused_and_named(path, name, kind):
    make_map(path, method="pca", text=False, color="text")
    file = max(Path(path, "maps/cls").glob("*.parquet"))
    rows = pq.read_table(file)
    place = rows.column_names.index(name)
    rows = rows.set_column(place, name, pa.nulls(len(rows), kind)) if kind else rows.remove_column(place)
    pq.write_table(rows, file)
    with pytest.raises(RunError, match=rf"{file.name} cannot be read: it has \d+ rows of"):
        varve.open(path).map()


def test_all_files_are_one_table_of_duckdb_and_polars(path):
    make_map(path, method="pca", color=HOSTILE)
    files = f"{path}/maps/cls/*.parquet"
    assert duckdb.sql(f"SELECT count(*), count(x) FROM read_parquet('{files}')").fetchall() == [(ROWS, len(GOOD))]
    assert pl.scan_parquet(files).select(pl.col("x").count()).collect().item() == len(GOOD)
    names = sorted(file.name for file in Path(path, "maps/cls").glob("*.parquet"))
    rows = np.concatenate([pq.read_table(Path(path, "maps/cls", name))["row"].to_numpy() for name in names])
    assert rows.tolist() == [*range(410), *range(120)]


def test_map_of_an_output_in_an_object_store(container):
    path = write(f"{container('moto')}/some/run")
    make_map(path, method="pca", neighbours=4)
    assert Storage(path).read("maps/cls/map.json")
    assert np.flatnonzero(varve.open(path).map()["x"].is_null()).tolist() == list(ERRORS)
