"""Pages and tables of notebooks: what comes from outside is text."""

import importlib
import sys
from html.parser import HTMLParser

import pytest

from tests.unit.pages.plot_markup import HOSTILE
from varve.pages.figure import Figure
from varve.pages.html_table import html_table
from varve.pages.page import render


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def parsed(markup: str) -> Tags:
    parser = Tags()
    parser.feed(markup)
    return parser


@pytest.fixture
def page(tmp_path, monkeypatch):
    """(content of a template, values) → the page."""
    package = tmp_path / "templates_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    def make(content: str, **values) -> str:
        text = '{% extends "base.html.jinja" %}{% import "macros.html.jinja" as parts %}'
        text += "{% block title %}t{% endblock %}{% block content %}" + content + "{% endblock %}"
        (package / "page.html.jinja").write_text(text)
        return render("templates_of_a_test", "page.html.jinja", **values)

    return make


@pytest.mark.parametrize(
    "content",
    [
        "{{ parts.cards([(hostile, hostile, hostile)]) }}",
        "{{ parts.notes([hostile]) }}",
        "{{ parts.facts([(hostile, hostile)]) }}",
        "{{ parts.table([hostile], [[hostile]], hostile[:50]) }}",
        "{{ parts.figure(figure) }}",
        "<p>{{ hostile[:50] }}</p>",
    ],
)
def test_hostile_text_is_text_on_the_page(page, content):
    text = page(content, hostile=HOSTILE, figure=Figure(HOSTILE, "<svg></svg>", (HOSTILE,), ((HOSTILE,),), ""))
    found = parsed(text)
    assert "script" not in found.tags
    assert any("<script>alert(1)" in part for part in found.texts)
    assert len(text) < 20_000


def test_page_allows_no_request(page):
    assert "default-src 'none'" in page("")


def test_value_that_a_template_misses_is_an_error(page):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        page("{{ missing }}")


def test_lone_surrogate_does_not_stop_the_page(page):
    page("{{ text }}", text="a\ud800b").encode("utf-8")


def test_numbers_of_a_table_are_aligned_right(page):
    text = page("{{ parts.table(['a', 'b'], [['word', '1,234.5 (1 to 2)']]) }}")
    assert '<td class="short"><bdi>word</bdi></td><td class="n"><bdi>1,234.5 (1 to 2)</bdi></td>' in text
    assert '<th scope="col" class="n"><bdi>b</bdi></th>' in text


def test_notebook_table_escapes_and_cuts():
    text = html_table(HOSTILE, [HOSTILE] * 100, [[HOSTILE] * 100] * 1000)
    assert not {"script", "a", "img"} & set(parsed(text).tags)
    assert "900 more rows" in text
    assert text.count("<th ") == 30
    assert len(text) < 2_000_000
    assert "\u202e" not in text
