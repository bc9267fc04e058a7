"""The page of a report in a real browser: offline, in both colour schemes, with hostile texts."""

import shutil
from pathlib import Path

import pytest

from tests.example_reports import LAYERS, example_history, example_manifest, example_report
from varve.exploration.page import render_report

CHROMIUM = shutil.which("chromium")
HOSTILE = [
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">',
    "\"'><svg onload=window.hacked=1>",
    "\u202eright to left\u2066",
    "{{ 7 * 7 }} ${7 * 7}",
    "x" * 1_000_000,
    "\x00\ud800\x1b[31m",
]
HISTORIES = (
    example_history(outcome="running", seconds=30),
    example_history(outcome="running", seconds=30, started_at=1_790_000_100.0),
    example_history(seconds=120, slow_from_s=50.0, started_at=1_790_003_730.0),
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: infra/servers.sh installs it")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def show(browser, path: Path, *, width=1400, scheme="light"):
    """(page, messages of its console and requests that it made)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, messages = context.new_page(), []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or messages.append(request.url[:200]))
    page.goto(path.as_uri())
    return page, messages


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(example_report(histories=HISTORIES)), "utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_page_offline_has_no_error_and_fits_its_width(browser, path, width, scheme):
    page, messages = show(browser, path, width=width, scheme=scheme)
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_shows_kills_failures_and_the_slow_half(browser, path):
    page, _ = show(browser, path)
    text = page.inner_text("main")
    assert text.count("was killed") == 2
    assert "50 rows (5.0%) failed" in text
    assert "2.0 times slower" in text
    titles = page.locator("svg.plot title").all_text_contents()
    assert any("not ended" in title for title in titles)


def test_each_plot_has_a_name_and_a_table(browser, path):
    page, _ = show(browser, path)
    plots = page.locator("svg.plot")
    assert plots.count() >= 9
    assert all(plots.nth(at).get_attribute("aria-label") for at in range(plots.count()))
    figures = page.locator("figure")
    for at in range(figures.count()):
        assert figures.nth(at).locator("details table tbody tr").count() > 0


def test_slider_of_the_map_moves_the_dots_and_hover_shows_the_text(browser, path):
    page, messages = show(browser, path)
    assert int(page.get_attribute("#layer", "max")) == LAYERS - 1
    page.locator("#map").scroll_into_view_if_needed()
    before = page.locator("#map path").nth(5).bounding_box()
    page.locator("#layer").fill("0")
    assert page.locator("#map path").nth(5).bounding_box() != before
    page.locator("#map path").nth(5).hover(force=True)
    assert "column" in page.inner_text("#point")
    assert messages == []


def test_hostile_texts_and_names_are_shown_as_text(browser, tmp_path):
    bad = "".join(HOSTILE)
    manifest = example_manifest(
        error_reasons={HOSTILE[0]: 50}, job={"source": {"text": bad}, "model": {"name": bad}}, versions={bad: bad}
    )
    content = render_report(example_report(texts=HOSTILE, name=HOSTILE[0], manifest=manifest, path=HOSTILE[0]))
    assert len(content) < 2_000_000
    path = tmp_path / "report.html"
    path.write_text(content, "utf-8")
    page, messages = show(browser, path)
    assert messages == []
    assert page.evaluate("window.hacked") is None
    assert "window.hacked = 1" in page.inner_text("main")
    assert "49" not in page.inner_text("#point")


def test_page_without_history_and_vectors_renders(browser, tmp_path):
    report = example_report(histories=(), vectors=(), similarity=None, content=None)
    path = tmp_path / "report.html"
    path.write_text(render_report(report), "utf-8")
    page, messages = show(browser, path)
    assert messages == []
    assert "No history of this run is stored" in page.inner_text("main")
