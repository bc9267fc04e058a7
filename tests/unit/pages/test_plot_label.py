"""Texts of plots: cut, on one line, without control of the direction of other texts."""

import math

import pytest

from varve.pages.label import duration, label, number, tick_texts


def test_label_of_a_megabyte_is_cut_to_its_limit():
    assert label("x" * 1_000_000, 20) == "x" * 19 + "…"


@pytest.mark.parametrize("text", ["a\u202eb", "a\u2066b", "a\u200fb", "a\u2069b", "a\u061cb"])
def test_label_with_direction_marks_keeps_only_its_letters(text):
    assert label(text) == "ab"


def test_label_with_control_characters_and_lines_is_one_line():
    assert label("a\x00b\n\tc\ud800d") == "a b c d"


def test_label_in_hebrew_is_isolated_from_the_text_around_it():
    assert label("דרך") == "\u2068דרך\u2069"


def test_cut_label_of_only_marks_shows_that_it_is_cut():
    assert label("\u202e" * 10_000, 10) == "…"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.123456789, "0.123457"), (-2.5, "\u22122.5"), (math.nan, "\u2013"),
     (math.inf, "\u2013"), (1e300, "1e+300")],
)  # fmt: skip
def test_number_is_readable(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.25 s"), (60, "1 min"), (200, "3 min 20 s"), (3599.9, "1 h"), (6000, "1 h 40 min"),
     (187200, "2 d 4 h"), (-90, "\u22121 min 30 s"), (math.nan, "\u2013")],
)  # fmt: skip
def test_duration_is_readable(seconds, text):
    assert duration(seconds) == text


def test_ticks_have_the_decimals_of_their_step():
    assert tick_texts([6.5, 6.75, 7.0]) == ["6.50", "6.75", "7.00"]
    assert tick_texts([0, 500_000, 1_000_000]) == ["0", "0.5M", "1.0M"]
    assert tick_texts([3.0]) == ["3"]
