from pipeline.ranges import Range
from pipeline.tally import Tally

ROWS = Range(0, 100, 200)


def test_part_that_is_begun_again_without_an_end_was_lost():
    tally = Tally()
    assert [tally.begin("encode", ROWS) for _ in range(3)] == [0, 1, 2]
    assert tally.snapshot().lost == 2
    assert tally.snapshot().under_way == (ROWS,)


def test_part_that_ended_is_begun_from_nothing():
    tally = Tally()
    tally.begin("encode", ROWS)
    tally.end("encode", ROWS)
    assert tally.begin("encode", ROWS) == 0
    assert tally.snapshot().lost == 0


def test_stages_are_told_apart():
    tally = Tally()
    tally.begin("tokenize", ROWS)
    assert tally.begin("encode", ROWS) == 0


def test_blocks_are_told_the_errors_of_all_and_whether_to_stop():
    tally = Tally()
    assert tally.add(10, 100, 2) == (2, False)
    tally.stop()
    assert tally.add(10, 100, 1) == (3, True)
    assert tally.stopped()
