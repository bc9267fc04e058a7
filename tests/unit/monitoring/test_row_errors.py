"""Rows without features are counted by their reasons, null texts apart from failures."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from varve.monitoring.row_errors import count_errors, list_reasons, merge_reasons, null_text


def count(*reasons: str | None):
    return count_errors(pa.array(reasons, pa.string()))


def test_null_texts_are_counted_apart_from_failures():
    counted = count(None, null_text("body"), "worker died", null_text("title"), None, "worker died")
    assert (counted.null_texts, counted.failures, counted.reasons) == (2, 2, {"worker died": 2})
    assert count(None, None).failures == count().failures == 0


def test_reasons_that_differ_in_numbers_only_are_one_reason():
    reasons = count("not UTF-8: byte 0xff at 3", "not UTF-8: byte 0x80 at 11", "f2: division by zero").reasons
    assert sorted(reasons.values()) == [1, 2]
    assert "f2: division by zero" in reasons


def test_reason_of_any_length_is_one_short_line():
    [reason] = count("a\nb " * 1000).reasons
    assert "\n" not in reason
    assert len(reason) <= 160


@given(st.lists(st.sampled_from([None, null_text("a"), *"bcdefghijklmnop"]), max_size=60))
def test_every_row_counts_once_and_the_most_frequent_reasons_remain(reasons):
    counted = count(*reasons)
    failures = [reason for reason in reasons if reason and reason != null_text("a")]
    assert counted.failures == len(failures)
    assert counted.null_texts == reasons.count(null_text("a"))
    kept = merge_reasons([counted.reasons, {}])
    assert kept == counted.reasons
    dropped = set(failures) - kept.keys()
    assert all(kept[reason] == failures.count(reason) for reason in kept)
    assert all(failures.count(reason) <= min(kept.values()) for reason in dropped)


def test_list_of_reasons_starts_with_the_most_frequent():
    assert list_reasons({"rare": 1, "frequent": 2000}) == "2,000 x frequent; 1 x rare"
