import math

import numpy as np
import pytest

from tests.unit.pages.plot_markup import HOSTILE, assert_is_harmless, elements, hints, numbers, texts
from varve.pages.line_plot import Series, Span, line_plot


def points(figure) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in elements(figure, "polyline")
    ]


def test_points_lie_at_their_values():
    figure = line_plot("t", "x", "y", [Series("a", [0, 1, 4], [0, 10, 20])], y_range=(0, 20))
    (line,) = points(figure)
    x, y = np.array(line).T
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 4, abs=1e-3)
    assert (y[1] - y[0]) / (y[2] - y[0]) == pytest.approx(1 / 2, abs=1e-3)
    assert y[2] < y[0]  # larger values are higher


def test_points_in_any_order_are_joined_from_left_to_right():
    (line,) = points(line_plot("t", "x", "y", [Series("a", [3, 1, 2], [1, 2, 3])]))
    assert line == sorted(line)


def test_value_that_is_not_finite_is_a_gap():
    figure = line_plot("t", "x", "y", [Series("a", range(7), [1, 2, math.nan, 3, 4, math.inf, 5])])
    assert [len(line) for line in points(figure)] == [2, 2]
    assert len(elements(figure, "circle")) == 5


def test_peak_of_a_million_points_is_drawn():
    y = np.zeros(1_000_000)
    y[777_777] = 5
    figure = line_plot("t", "x", "y", [Series("a", np.arange(len(y)), y)])
    (line,) = points(figure)
    assert len(line) <= 12_100
    assert min(at for _, at in line) < max(at for _, at in line) - 200
    assert "200 of 1,000,000" in figure.note
    assert len(figure.rows) == 200


def test_table_has_each_value_with_its_interval():
    figure = line_plot("t", "layer", "y", [Series("a", [0, 1], [1, 2], [0, 1.5], [3, 2.5]), Series("b", [1], [7])])
    assert figure.header == ("layer", "a", "b")
    assert figure.rows == (("0", "1 (0 to 3)", ""), ("1", "2 (1.5 to 2.5)", "7"))


def test_interval_bar_ends_at_its_values():
    figure = line_plot("t", "x", "y", [Series("a", [0, 1], [5, 5], [0, 5], [10, 5])], y_range=(0, 10))
    bar = next(line for line in elements(figure, "line") if line.attrib.get("stroke-width") == "1.6")
    middle = numbers(elements(figure, "circle")[0], "cy")[0]
    low, high = numbers(bar, "y1", "y2")
    assert middle == pytest.approx((low + high) / 2)
    assert low > high


def test_point_that_is_alone_is_not_joined():
    figure = line_plot("t", "x", "y", [Series("a", [0, 1, 3, 4], [1, 2, 3, 4], alone_from=3)])
    assert [len(line) for line in points(figure)] == [2]
    assert len(elements(figure, "circle")) == 4


def test_ring_is_around_its_point():
    figure = line_plot("t", "x", "y", [Series("a", [0, 1], [1, 2]), Series("b", [0, 1], [3, 4])], ring=("b", 1, "best"))
    ring = next(c for c in elements(figure, "circle") if c.attrib.get("r") == "9")
    assert tuple(numbers(ring, "cx", "cy")) == points(figure)[1][1]
    assert "best" in texts(figure)


def test_curves_differ_in_shape_and_dashes_not_only_in_colour():
    figure = line_plot("t", "x", "y", [Series(str(i), [0, 1], [i, i]) for i in range(9)])
    lines = elements(figure, "polyline")
    assert lines[0].attrib["stroke"] == lines[8].attrib["stroke"]
    assert "stroke-dasharray" in lines[8].attrib
    assert "stroke-dasharray" not in lines[0].attrib
    assert {len(elements(figure, tag)) > 0 for tag in ("circle", "rect", "path")} == {True}


def test_span_covers_its_range():
    figure = line_plot("t", "x", "y", [Series("a", [0, 10], [1, 1])], spans=[Span(0, 5, "lost")])
    (line,) = points(figure)
    span = next(rect for rect in elements(figure, "rect") if rect.attrib.get("class") == "span")
    x, width = numbers(span, "x", "width")
    assert x == pytest.approx(line[0][0], abs=0.2)
    assert width == pytest.approx((line[1][0] - line[0][0]) / 2, abs=0.2)
    assert "lost" in texts(figure)


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", [], [])],
        [Series("a", [1], [2])],
        [Series("a", [math.nan, math.inf], [1, 2])],
        [Series("a", [1, 2], [math.nan, -math.inf])],
        [Series("a", [0, 1], [1e308, -1e308], [math.nan, -1e308], [1e308, math.inf])],
        [Series("a", [5, 5, 5], [7, 7, 7])],
        [Series(f"{HOSTILE}{i}", range(500), range(500)) for i in range(1024)],
    ],
)
def test_awkward_series_are_drawn(series):
    figure = line_plot(
        HOSTILE, HOSTILE, HOSTILE, series, spans=[Span(0, math.nan, HOSTILE), Span(1, 0, HOSTILE)] * 500,
        levels=[(math.nan, "n"), (1, HOSTILE)], y_from_zero=False,
    )  # fmt: skip
    assert_is_harmless(figure)


def test_time_axis_is_in_minutes():
    figure = line_plot("t", "Time", "y", [Series("a", [0, 1800], [1, 2])], x_is_time=True)
    assert {"5 min", "30 min"} <= set(texts(figure))
    assert any("30 min" in hint for hint in hints(figure))


def test_text_on_hover_has_name_and_value():
    figure = line_plot("t", "x", "y", [Series("a", [0], [0.5], [0.25], [0.75], names=["cls_00"])])
    assert "cls_00: 0.5 (0.25 to 0.75)" in hints(figure)


def test_standalone_plot_has_its_style_and_a_background():
    figure = line_plot("t", "x", "y", [Series("a", [0], [1])])
    assert "<style>" not in figure.svg
    assert "prefers-color-scheme: dark" in figure.standalone()
    assert figure.standalone().startswith("<svg xmlns=")
