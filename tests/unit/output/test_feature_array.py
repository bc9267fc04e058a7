"""A feature of all rows as one array: in memory, in a temporary file, in a .npy file, and as lists of vectors."""

import numpy as np
import pytest

from tests.outputs import column, write_output
from varve import JobError, RunError
from varve.output import feature_array, feature_sets
from varve.output.feature_array import read_array

ROWS, ERRORS = 530, (3, 411)
VALUES = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
WINDOWS = np.random.default_rng(1).normal(size=(ROWS, 5)).astype(np.float32)
DTYPES = ("float32", "float16", "int8", "binary")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    features = {column(dtype, 6, dtype=dtype): VALUES for dtype in DTYPES}
    features[column("windowed", 5, form="windows")] = WINDOWS
    where = tmp_path_factory.mktemp("array") / "out"
    return write_output(where, features, {"id": list(range(ROWS))}, errors=ERRORS, shards=[410, 0, 120])


def expected(dtype: str) -> np.ndarray:
    scales = np.abs(VALUES).max(axis=1, keepdims=True) / np.float32(127)
    values = {
        "float32": VALUES,
        "float16": VALUES.astype(np.float16).astype(np.float32),
        "int8": np.round(VALUES / scales) * scales,
        "binary": np.where(VALUES > 0, 1, -1),
    }[dtype].astype(np.float32)
    values[list(ERRORS)] = np.nan
    return values


@pytest.mark.parametrize("dtype", DTYPES)
def test_array_of_each_stored_type_has_a_row_per_row_and_nan_for_errors(path, dtype):
    found = read_array(feature_sets.open(path), dtype)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(dtype), rtol=1e-6)


def test_large_array_is_mapped_from_a_temporary_file(path, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_array, "MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = read_array(feature_sets.open(path), "float32")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected("float32"))
    assert list(tmp_path.iterdir()) == []


def test_named_file_is_a_plain_npy_file(path, tmp_path):
    found = read_array(feature_sets.open(path), "float16", tmp_path / "v.npy")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected("float16"))
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected("float16"))
    with pytest.raises(JobError, match=r"v\.npy exists already"):
        read_array(feature_sets.open(path), "float16", tmp_path / "v.npy")
    assert [file.name for file in tmp_path.iterdir()] == ["v.npy"]


def test_lists_of_vectors_are_ragged_and_empty_for_errors(path):
    found = read_array(feature_sets.open(path), "windowed")
    assert len(found) == ROWS
    assert [len(found[row]) for row in (0, *ERRORS)] == [1, 0, 0]
    np.testing.assert_array_equal(found[500], WINDOWS[500:501])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cls", {}, r"has no feature 'cls'; possible here: float32, float16, int8, binary, windowed"),
        ("id", {}, "has no feature 'id'"),
        ("windowed", {"file": "x.npy"}, r"lists of vectors \(windows\).* Remove `file`"),
        ("int8", {"file": "/nowhere/x.npy"}, "not in an existing folder"),
    ],
)
def test_impossible_arrays_are_refused_with_what_is_possible(path, name, options, reason):
    with pytest.raises(JobError, match=reason):
        read_array(feature_sets.open(path), name, **options)


def test_full_disk_is_an_error_before_anything_is_written(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_array, "MEMORY_BYTES", 1000)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RunError, match=r"No space left on device\. Set TMPDIR"):
        read_array(feature_sets.open(path), "float32")
