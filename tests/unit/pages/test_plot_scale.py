"""Scales and ticks hold for every value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from varve.pages.scale import Scale, ticks, time_ticks, value_range

ANY = st.floats(allow_nan=True, allow_infinity=True)


def test_scale_maps_ends_and_middle_to_their_pixels():
    scale = Scale(10, 20, 300, 100)
    assert [scale(value) for value in (10, 15, 20, 99, math.nan)] == [300, 200, 100, 100, 300]


@given(st.lists(ANY, max_size=8), st.booleans())
def test_range_of_any_values_is_finite_and_not_empty(values, zero):
    low, high = value_range([values], margin=0.05, zero=zero)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    inside = [value for value in values if abs(value) <= 1e300]
    assert all(low <= value <= high for value in inside)
    assert not zero or not inside or low <= 0 <= high


@given(st.lists(ANY, min_size=1, max_size=8), st.sampled_from([ticks, time_ticks]))
def test_ticks_of_any_range_are_few_ascending_and_inside(values, make):
    low, high = value_range([values])
    found = make(low, high)
    assert len(found) <= 61
    assert found == sorted(found)
    slack = 1e-6 * (high - low) + 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= value <= high + slack for value in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 6, [0, 1, 2, 3, 4, 5, 6])]
)
def test_ticks_are_round(low, high, expected):
    assert np.allclose(ticks(low, high), expected)


def test_whole_ticks_of_few_layers_have_no_fractions():
    assert ticks(0, 3, 9, whole=True) == [0, 1, 2, 3]


def test_time_ticks_are_minutes_or_hours():
    assert time_ticks(0, 1800) == [0, 300, 600, 900, 1200, 1500, 1800]
    assert time_ticks(0, 6 * 3600) == [3600 * hour for hour in range(7)]
