import math

import pytest

from tests.unit.pages.plot_markup import HOSTILE, assert_is_harmless, elements, hints, numbers, texts
from varve.pages.timeline import KINDS, Bar, Lane, Span, timeline


def shapes(figure, kind: str) -> list:
    """Rectangles of a kind, by their text on hover."""
    return [r for r in elements(figure, "rect") if len(r) and f"({kind}," in (r[0].text or "")]


def test_bars_lie_at_their_times():
    figure = timeline("t", [Lane("a", [Bar(0, 50, "work", "one"), Bar(50, 100, "work", "two")])], end_s=200)
    (x1, w1), (x2, w2) = (numbers(rect, "x", "width") for rect in shapes(figure, "work"))
    assert x2 - x1 == pytest.approx((900 - 30 - x1) / 4, abs=0.2)
    assert w1 == w2
    assert "one (work, 0 s to 50 s)" in hints(figure)


def test_kinds_differ_in_colour_and_in_height_or_pattern():
    figure = timeline("t", [Lane("a", [Bar(9 * at, 9 * at + 9, kind, "x") for at, kind in enumerate(KINDS)])], end_s=45)
    looks = {
        kind: (tuple(numbers(found[0], "height")), len(found)) for kind in KINDS for found in [shapes(figure, kind)]
    }
    assert len({shapes(figure, kind)[0].attrib["fill"] for kind in KINDS}) == len(KINDS)
    assert len(set(looks.values())) == 4  # slow and lost have the same hatch
    assert set(KINDS) <= set(texts(figure))


def test_table_of_few_bars_has_each_bar():
    figure = timeline("t", [Lane("Replica 0", [Bar(0, 90, "lost", "shard 3")])], end_s=100)
    assert figure.rows == (("Replica 0", "lost", "0 s", "1 min 30 s", "shard 3"),)


def test_table_of_many_bars_has_the_sum_of_each_kind():
    bars = [Bar(at, at + 1, "work" if at % 2 else "slow", "x") for at in range(1000)]
    figure = timeline("t", [Lane("a", bars)], end_s=1000)
    assert figure.header == ("Lane", "Bars", *KINDS)
    assert figure.rows == (("a", "1,000", "0 s", "0 s", "8 min 20 s", "8 min 20 s", "0 s"),)


def test_short_loss_among_many_bars_is_drawn():
    bars = [Bar(at, at + 1, "work", "x") for at in range(2000)]
    figure = timeline("t", [Lane("a", [*bars, Bar(777.1, 777.2, "lost", "x")])], end_s=2000)
    path = next(p for p in elements(figure, "path") if len(p) and p[0].text == "lost")
    start = float(path.attrib["d"].split()[0].removeprefix("M"))
    axis = next(line for line in elements(figure, "line") if line.attrib["class"] == "axis")
    x1, x2 = numbers(axis, "x1", "x2")
    assert start == pytest.approx(x1 + (x2 - x1) * 777 / 2000, abs=1.5)


def test_thousand_lanes_share_rows_and_stay_small():
    lanes = [
        Lane(HOSTILE, [Bar(3 * j, 3 * j + 2, KINDS[(i + j) % 5], HOSTILE[:99]) for j in range(100)])
        for i in range(1024)
    ]
    figure = timeline(HOSTILE, lanes, end_s=300, spans=[Span(1, 2, HOSTILE)])
    assert "11 lanes" in figure.note
    assert len(figure.rows) == 200
    assert_is_harmless(figure, most_bytes=900_000)


def test_span_is_labelled_above_the_lanes():
    figure = timeline("t", [Lane("a", [Bar(0, 10, "work", "x")])], end_s=10, spans=[Span(2, 4, "No progress")])
    assert "No progress" in texts(figure)


@pytest.mark.parametrize(
    "lanes",
    [
        [],
        [Lane("a", ())],
        [Lane("a", [Bar(math.nan, 5, "work", "x"), Bar(9, math.inf, "slow", "x"), Bar(7, 2, "odd", "x")])],
        [Lane(HOSTILE, [Bar(-5, 1e300, "lost", HOSTILE)])],
    ],
)
@pytest.mark.parametrize("end_s", [0, 10, math.nan, 1e300])
def test_awkward_times_are_drawn(lanes, end_s):
    assert_is_harmless(timeline(HOSTILE, lanes, end_s=end_s, spans=[Span(math.nan, 3, HOSTILE)]))
