import numpy as np
import pytest

from varve.encoder.postprocessing import normalize, quantize

VECTORS = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)


def test_int8_with_its_scale_is_within_half_a_step():
    stored, scales = quantize(VECTORS, "int8")
    assert stored.dtype == np.int8
    assert np.abs(stored * scales[:, None] - VECTORS).max() <= scales.max() / 2 + 1e-6
    assert (np.abs(stored).max(axis=1) == 127).all()


def test_int8_of_a_zero_vector_is_zero():
    stored, scales = quantize(np.zeros((1, 4), np.float32), "int8")
    assert not stored.any()
    assert not scales.any()


def test_binary_keeps_one_sign_bit_for_each_dimension():
    stored, _ = quantize(VECTORS, "binary")
    assert stored.shape == (50, 3)
    assert np.array_equal(np.unpackbits(stored, axis=1, count=20).astype(bool), VECTORS > 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_floats_keep_their_dtype(dtype):
    stored, scales = quantize(VECTORS, dtype)
    assert stored.dtype == dtype
    assert scales is None


def test_normalized_vectors_have_unit_length_and_zero_stays_zero():
    vectors = normalize(np.vstack([VECTORS, np.zeros((1, 20), np.float32)]))
    assert np.abs(np.linalg.norm(vectors[:-1], axis=1) - 1).max() < 1e-6
    assert not vectors[-1].any()
