"""A file is skipped only if its range cannot hold a key of the others."""

import pytest

from varve.backfill.keys.key_ranges import KeyRanges


@pytest.mark.parametrize(
    ("ranges", "other", "expected"),
    [
        ([(0, 9), (20, 29)], (10, 19), False),
        ([(0, 9), (20, 29)], (9, 9), True),
        ([(0, 9), (20, 29)], (19, 20), True),
        ([(0, 9), (20, 29)], (-5, 50), True),
        ([(0, 9), (20, 29)], (30, 40), False),
        ([(0, 9), (20, 29)], (-9, -1), False),
        ([(20, 29), (0, 100), (3, 5)], (60, 70), True),  # a range within another one
        ([("a", "b"), ("é", "é")], ("c", "d"), False),
        ([("a", "b"), ("é", "é")], ("z", "ü"), True),
        ([(b"a", b"b")], (b"b\x00", b"c"), False),
        ([(0, 9), None], (50, 60), True),
        ([(0, 9)], None, True),
        ([(0, 9)], ("a", "b"), True),  # bounds that cannot be compared
        ([(0, 9), ("a", "b")], (50, 60), True),
        ([], (0, 9), False),
        ([], None, False),
    ],
)
def test_ranges_overlap(ranges, other, expected):
    assert KeyRanges(ranges).overlap(other) == expected
