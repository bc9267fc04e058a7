"""What a notebook shows of manifests, outputs, estimates and probes: tables in which nothing runs."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import varve
from tests.outputs import column, write_output

HOSTILE = "<script>alert(1)</script>\"'\u202e" + "x" * 10**6


class Cells(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    values = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    path = tmp_path_factory.mktemp("notebook") / "out"
    return varve.open(write_output(path, {column("cls", 6): values}, {"id": list(range(50))}, errors=(3,)))


def shown(thing) -> Cells:
    """The cells, as IPython's formatter makes them if it is installed."""
    try:
        from IPython.core.formatters import HTMLFormatter
    except ImportError:
        return Cells(thing._repr_html_())
    return Cells(HTMLFormatter()(thing))


def test_manifest_is_shown_with_its_numbers(output):
    cells = shown(output.manifest)
    assert {"50", "490; 0 rows truncated", "a-model", "3 rows compared, passed"} <= set(cells.texts)
    assert cells.tags & {"script", "img", "onerror", "href", "src"} == set()


def test_output_is_shown_with_its_features(output):
    cells = shown(output)
    assert cells.texts[-6:] == ["cls", "vector", "6", "float32", "cls", "0"]
    assert f"{output.path}: 50 rows" in "".join(cells.texts) or "…" in "".join(cells.texts)


def test_hostile_values_are_shown_as_bounded_text(output):
    manifest = replace(
        output.manifest, path=HOSTILE, job={"model": {"name": HOSTILE}, "features": {HOSTILE: {}}},
        descriptions={HOSTILE: HOSTILE}, error_reasons={HOSTILE: 1}, stages={"bottleneck": HOSTILE},
        seconds={"plan": 1.0}, canary={"rows": HOSTILE},
    )  # fmt: skip
    html = manifest._repr_html_()
    assert len(html) < 20_000
    cells = Cells(html)
    assert "script" not in cells.tags
    assert "\u202e" not in html
    assert any("<script>alert(1)" in text for text in cells.texts)
