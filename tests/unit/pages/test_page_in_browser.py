"""A page with every kind of plot in Chromium, offline: hostile names stay text, the map works with mouse and keys."""

import importlib
import shutil
import sys

import numpy as np
import pytest

from varve.pages.agreement_plot import agreement_plot
from varve.pages.bar_plot import bar_plot
from varve.pages.heat_map import heat_map
from varve.pages.histogram import histogram
from varve.pages.line_plot import Series, Span, line_plot
from varve.pages.page import render
from varve.pages.scatter_map import MapLayer, map_json
from varve.pages.timeline import Bar, Lane, timeline

CHROMIUM = shutil.which("chromium")
HOSTILE = '\u202e</script><script>alert("x")</script><img src=x onerror=alert(1)>' + "x" * 100_000
NUM = 60
TEMPLATE = """{% extends "base.html.jinja" %}{% import "macros.html.jinja" as parts %}
{% block title %}{{ hostile[:50] }}{% endblock %}
{% block content %}<h1>{{ hostile[:300] }}</h1>{{ parts.cards([(hostile, hostile, hostile)]) }}
{{ parts.notes([hostile]) }}{% for f in figures %}{{ parts.figure(f) }}{% endfor %}
{{ parts.facts([(hostile, hostile)]) }}{{ parts.table([hostile], [[hostile]]) }}
{{ parts.scatter_map(map, hostile[:200]) }}
{% endblock %}"""


def figures() -> list:
    lanes = [Lane(HOSTILE, [Bar(0, 5, "start", HOSTILE), Bar(5, 9, "lost", HOSTILE)])]
    series = [Series(HOSTILE, [0, 1], [1, 2], [0, 1], [2, 3]), Series("b", range(500), range(500))]
    return [
        line_plot(HOSTILE, HOSTILE, HOSTILE, series, spans=[Span(0, 50, HOSTILE)], levels=[(1, HOSTILE)]),
        histogram(HOSTILE, HOSTILE, [0, 1, 2], [3, 4], marks=[(1, HOSTILE)]),
        bar_plot(HOSTILE, HOSTILE, [HOSTILE, "b"], [1, 2]),
        heat_map(HOSTILE, [HOSTILE, "b"], [[1, 0.5], [0.5, np.nan]]),
        timeline(HOSTILE, lanes, end_s=10, spans=[Span(1, 2, HOSTILE)]),
        agreement_plot(HOSTILE, HOSTILE, HOSTILE, [1, 2], [1, 3]),
    ]


def layers(num_layers: int) -> list[MapLayer]:
    rng = np.random.default_rng(0)
    return [MapLayer(f"cls_{at:02}", "cls", at, rng.normal(size=(NUM, 2)), (0.5, 0.2)) for at in range(num_layers)]


@pytest.fixture
def page_file(tmp_path, monkeypatch):
    """(JSON of the map) → address of a page with all plots."""
    package = tmp_path / "all_plots_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "page.html.jinja").write_text(TEMPLATE)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    def make(map_of_points: str) -> str:
        text = render(package.name, "page.html.jinja", hostile=HOSTILE, figures=figures(), map=map_of_points)
        (tmp_path / "page.html").write_text(text, "utf-8")
        return (tmp_path / "page.html").as_uri()

    return make


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """An open page, with what it complained about and requested."""

    def __init__(self, browser, address, *, width=400, scheme="dark"):
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
        self.page, self.complaints, self.requests = context.new_page(), [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def text(self) -> str:
        return self.page.locator("#point").inner_text()

    def assert_is_quiet(self):
        assert self.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in self.requests)


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: infra/servers.sh installs it")


@pytest.mark.slow
def test_page_with_all_plots_works_offline_on_a_phone(page_file, browser):
    classes = ["ham", "<b>spam</b>"]
    texts = [f"text {at} {HOSTILE}" for at in range(NUM)]
    labels = [at % 2 for at in range(NUM)]
    address = page_file(map_json(layers(3), classes=classes, labels=labels, texts=texts, selected="cls_01"))
    visit = Visit(browser, address)
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("svg.plot[role=img][aria-label]").count() == len(figures())
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("figure table").count() == len(figures())
    assert page.locator("#map-table tr").count() == NUM + 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    dot = page.locator("#map path").first
    before = dot.get_attribute("transform")
    assert page.locator("#shown").inner_text() == "Layer 1"
    page.locator("#layer").press("ArrowRight")
    assert page.locator("#shown").inner_text() == "Layer 2"
    assert dot.get_attribute("transform") != before

    page.get_by_role("button", name="<b>spam</b>").click()
    assert page.locator("#map path[opacity='0.07']").count() == NUM // 2
    page.locator("#map path").nth(3).dispatch_event("pointerenter")
    assert "</script><script>alert(" in visit.text()
    visit.assert_is_quiet()


@pytest.mark.slow
def test_map_is_read_with_the_keyboard_and_by_tapping_near_a_dot(page_file, browser):
    texts = [f"text {at}" for at in range(NUM)]
    values = np.linspace(-1, 1, NUM).tolist()
    address = page_file(map_json(layers(1), classes=[], labels=values, texts=texts, selected="cls_00"))
    visit = Visit(browser, address, width=1400, scheme="light")
    page = visit.page
    page.locator("#map").focus()
    seen = [visit.text()]
    for key in ["ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"]:
        page.keyboard.press(key)
        seen.append(visit.text())
    assert all("text " in text for text in seen[1:])
    assert len(set(seen)) >= 4
    box = page.locator("#map path").nth(7).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2 + 7, box["y"] + box["height"] / 2)
    assert visit.text().startswith(f"{float(f'{values[7]:.6g}')}: text 7")
    visit.assert_is_quiet()


@pytest.mark.slow
def test_map_without_points_and_without_texts_does_not_fail(page_file, browser):
    for map_of_points in (
        map_json([], classes=[], labels=[], texts=[], selected=""),
        map_json(layers(1), classes=[], labels=[float("nan")] * NUM, texts=[], selected="other"),
    ):
        visit = Visit(browser, page_file(map_of_points))
        visit.page.locator("#map").focus()
        visit.page.keyboard.press("ArrowRight")
        visit.assert_is_quiet()
