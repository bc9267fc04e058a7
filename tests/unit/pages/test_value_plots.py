"""Histograms, bars, heat maps and plots of pairs: geometry against values, bounds, hostile names."""

import math

import numpy as np
import pytest

from tests.unit.pages.plot_markup import HOSTILE, assert_is_harmless, elements, hints, numbers, texts
from varve.pages.agreement_plot import agreement_plot
from varve.pages.bar_plot import bar_plot
from varve.pages.heat_map import heat_map
from varve.pages.histogram import histogram

NAN = math.nan


def test_histogram_bars_are_as_high_as_their_counts():
    figure = histogram("t", "x", [0, 1, 2, 4], [10, 0, 5])
    tall, low = (numbers(rect, "x", "width", "height") for rect in elements(figure, "rect"))
    assert tall[2] == pytest.approx(2 * low[2], rel=0.01)
    assert low[1] + 1 == pytest.approx(2 * (tall[1] + 1), rel=0.01)
    assert figure.rows == (("0", "1", "10"), ("1", "2", "0"), ("2", "4", "5"))


def test_histogram_of_a_million_ranges_keeps_the_sum():
    counts = np.random.default_rng(0).integers(0, 9, 1_000_000)
    figure = histogram("t", "x", np.arange(1_000_001), counts)
    assert len(figure.rows) == len(elements(figure, "rect")) == 200
    assert sum(int(row[2].replace(",", "")) for row in figure.rows) == counts.sum()
    assert_is_harmless(figure)


def test_histogram_mark_is_at_its_value():
    figure = histogram("t", "x", [0, 10, 20], [1, 1], marks=[(10, "max_tokens")])
    mark = next(line for line in elements(figure, "line") if line.attrib.get("class") == "mark")
    x, width = numbers(elements(figure, "rect")[0], "x", "width")
    assert numbers(mark, "x1")[0] == pytest.approx(x + width + 1, abs=0.2)
    assert "max_tokens" in texts(figure)


def test_histogram_with_a_missing_edge_is_refused():
    with pytest.raises(ValueError, match="3 counts need 4 edges, not 3"):
        histogram("t", "x", [0, 1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("edges", "counts"), [([], []), ([1, 1], [5]), ([NAN, 1, 2], [NAN, 3]), ([-1, 0, 1e308], [-3, 3]), ([0, 1], [0])]
)
def test_awkward_histograms_are_drawn(edges, counts):
    assert_is_harmless(histogram(HOSTILE, HOSTILE, edges, counts, marks=[(NAN, "n"), (0.5, HOSTILE)] * 20))


def test_bars_are_as_long_as_their_values():
    figure = bar_plot("t", "share", ["a", "b"], [0.5, 0.25], form="{:.0%}")
    one, half = (numbers(rect, "width")[0] for rect in elements(figure, "rect"))
    assert one == pytest.approx(2 * half, rel=0.01)
    assert figure.rows == (("a", "50%"), ("b", "25%"))
    assert {"50%", "25%"} <= set(texts(figure))


def test_negative_bar_ends_where_the_positive_one_begins():
    figure = bar_plot("t", "x", ["a", "b"], [-1, 1])
    (x1, w1), (x2, w2) = (numbers(rect, "x", "width") for rect in elements(figure, "rect"))
    assert x1 + w1 == pytest.approx(x2)
    assert w1 == pytest.approx(w2)


def test_awkward_bars_are_drawn_and_counted():
    figure = bar_plot(
        HOSTILE, HOSTILE, [HOSTILE, "שלום", "日本語" * 40, "", "a"] * 100, [1, NAN, -5, math.inf, 0] * 100
    )
    assert len(elements(figure, "rect")) == 40
    assert "460 more" in figure.note
    assert_is_harmless(figure)
    assert_is_harmless(bar_plot("t", "x", [], []))


def test_heat_map_cells_are_darker_for_larger_values():
    figure = heat_map("t", ["a", "b"], [[0, 0.5], [1, 2]])
    shades = [float(rect.attrib["opacity"]) for rect in elements(figure, "rect")[:4]]
    assert shades == [0.04, 0.49, 0.94, 0.94]
    assert {"0.00", "0.50", "1.00", "2.00"} <= set(texts(figure))
    assert figure.rows == (("a", "0.000", "0.500"), ("b", "1.000", "2.000"))


def test_heat_map_of_many_layers_shows_means_of_blocks():
    values = np.random.default_rng(0).uniform(size=(96, 96))
    figure = heat_map("t", [str(at) for at in range(96)], values)
    assert hints(figure)[0].endswith(f": {values[:2, :2].mean():,.6g}")
    assert len([hint for hint in hints(figure) if ": " in hint]) == 48 * 48


@pytest.mark.parametrize("size", [0, 1, 2, 1024])
def test_awkward_heat_maps_are_drawn(size):
    values = np.full((size, size), NAN)
    values[:, :1] = 1e308
    assert_is_harmless(heat_map(HOSTILE, [HOSTILE] * size, values, low=0, high=0), most_bytes=700_000)


def test_agreement_plot_has_equal_values_on_its_diagonal():
    figure = agreement_plot(
        "t", "x", "y", [0, 0.5, 1], [0, 0.5, 0], ends=(0, 1), weights=[1, 4, 1], hints=["a", "b", "c"]
    )
    x, y = np.array([numbers(dot, "cx", "cy") for dot in elements(figure, "circle")]).T
    diagonal = next(line for line in elements(figure, "line") if line.attrib["class"] == "base")
    x1, y1, x2, y2 = numbers(diagonal, "x1", "y1", "x2", "y2")
    assert (x[0], y[0]) == (x1, y1)
    assert (x[1], y[1]) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2))
    assert (x[2], y[2]) == (x2, y1)
    assert hints(figure) == ["a", "b", "c"]


@pytest.mark.parametrize("values", [[], [NAN], [1, math.inf], [3], np.arange(100_000)])
def test_awkward_pairs_are_drawn(values):
    assert_is_harmless(agreement_plot(HOSTILE, HOSTILE, HOSTILE, values, values))
