"""Samples of rows: uniform, spread over the parts, bounded, and aligned between features."""

import numpy as np
import pytest

from tests.outputs import column, write_output
from varve.encoder.ragged import Ragged
from varve.errors import RunError
from varve.exploration import row_sample
from varve.exploration.row_sample import read_sample
from varve.exploration.sampled_parts import sample_rows
from varve.output.feature_sets import open as open_output


def numbered(rows: int, width: int = 4) -> np.ndarray:
    """Vectors whose first value is the number of their row."""
    vectors = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    vectors[:, 0] = np.arange(rows)
    return vectors


def test_sample_of_few_rows_holds_all_of_them():
    chosen = sample_rows([3, 0, 2], 100, 10**9, seed=0)
    assert {part: rows.tolist() for part, rows in chosen.items()} == {0: [0, 1, 2], 2: [0, 1]}


def test_sample_of_bounded_parts_is_spread_and_decodes_no_more_rows():
    chosen = sample_rows([1000] * 1000, 500, 20_000, seed=1)
    assert len(chosen) == 20
    assert np.diff(sorted(chosen)).tolist() == [50] * 19
    assert sum(map(len, chosen.values())) == 500
    assert all(len(set(rows.tolist())) == len(rows) and max(rows) < 1000 for rows in chosen.values())


@pytest.mark.parametrize("max_decoded_rows", [10**9, 150])
def test_sample_over_many_seeds_takes_each_row_equally_often(max_decoded_rows):
    part_rows = [50, 10, 100, 40]
    firsts = np.cumsum([0, *part_rows])
    times = np.zeros(200)
    for seed in range(2000):
        for part, rows in sample_rows(part_rows, 30, max_decoded_rows, seed).items():
            times[firsts[part] + rows] += 1
    expected = times.sum() / 200
    assert times.sum() >= 2000 * 28
    assert abs(times / expected - 1).max() < 0.3  # 300 draws of each row: 6 % standard deviation, more by parts
    by_part = [times[firsts[part] : firsts[part + 1]].mean() / expected for part in range(4)]
    assert np.allclose(by_part, 1, atol=0.15)


def test_sample_keeps_features_of_a_row_together_and_leaves_out_errors(tmp_path):
    first, second = column("cls_00", 4), column("cls_01", 4, layer=1, dtype="float16")
    vectors = numbered(300)
    path = write_output(
        tmp_path, {first: vectors, second: vectors}, {"id": np.arange(300)}, rows_per_part=70, errors=[0, 5, 299]
    )
    sample = read_sample(open_output(path), 0, ["id"])
    assert sample.rows.tolist() == [row for row in range(300) if row not in {0, 5, 299}]
    assert np.array_equal(sample.vectors["cls_00"], vectors[sample.rows])
    assert np.array_equal(sample.vectors["cls_01"], vectors[sample.rows].astype(np.float16))
    assert sample.kept["id"].to_pylist() == sample.rows.tolist()


def test_sample_of_a_row_that_is_not_finite_leaves_it_out_of_every_feature(tmp_path):
    vectors, broken = numbered(50), numbered(50)
    broken[7, 1], broken[20, 2] = np.nan, np.inf
    path = write_output(tmp_path, {column("a", 4): vectors, column("b", 4): broken}, {"id": np.arange(50)})
    sample = read_sample(open_output(path), 0)
    assert {7, 20}.isdisjoint(sample.rows.tolist())
    assert np.array_equal(sample.vectors["a"], vectors[sample.rows])


def test_sample_of_windows_holds_their_vectors_up_to_the_limit(tmp_path, monkeypatch):
    lists = Ragged(numbered(120), np.arange(0, 121, 3))  # 40 rows of three windows
    path = write_output(
        tmp_path, {column("w", 4, form="windows"): lists, column("v", 4): numbered(40)}, {"id": np.arange(40)},
        rows_per_part=40,
    )  # fmt: skip
    monkeypatch.setattr(row_sample, "MAX_ROWS", 30)
    monkeypatch.setattr(row_sample, "_MIN_ROWS", 1)
    sample = read_sample(open_output(path), 0)
    assert len(sample) == 30
    assert len(sample.lists["w"]) == 31
    assert np.array_equal(sample.lists["w"], read_sample(open_output(path), 0).lists["w"])
    assert {int(number) // 3 for number in sample.lists["w"][:, 0]} <= set(sample.rows.tolist())


def test_sample_of_a_large_output_reads_few_parts(tmp_path, monkeypatch):
    vectors = numbered(2000, 16)
    path = write_output(tmp_path, {column("v", 16): vectors}, {"id": np.arange(2000)}, rows_per_part=100)
    monkeypatch.setattr(row_sample, "MAX_ROWS", 200)
    monkeypatch.setattr(row_sample, "_MIN_ROWS", 1)
    monkeypatch.setattr(row_sample, "MAX_DECODED_BYTES", 50_000)  # of 140,000
    output = open_output(path)
    sample = read_sample(output, 3)
    parts = np.unique(sample.rows // 100)
    assert 3 <= len(parts) <= 8
    assert len(sample) == 200
    assert np.ptp(sample.rows % 100) > 90  # not the first rows of each part only
    assert np.array_equal(sample.vectors["v"], vectors[sample.rows])
    again, other = read_sample(output, 3), read_sample(output, 4)
    assert np.array_equal(again.rows, sample.rows)
    assert not np.array_equal(other.rows, sample.rows)


def test_sample_of_an_output_with_a_damaged_part_names_it(tmp_path):
    path = write_output(tmp_path, {column("v", 4): numbered(20)}, {"id": np.arange(20)}, rows_per_part=10)
    part = sorted((tmp_path / "data").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-50] + bytes(50))
    with pytest.raises(RunError, match=part.name):
        read_sample(open_output(path), 0)
