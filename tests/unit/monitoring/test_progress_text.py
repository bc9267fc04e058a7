"""What the progress line says of lost replicas, the bottleneck and texts that grow; and the bar of a notebook."""

import sys
from types import SimpleNamespace

import pytest

from tests.waiting import wait_until
from varve.monitoring import progress_line
from varve.monitoring.notebook_line import NotebookLine, bar_html
from varve.monitoring.progress_line import ProgressLine
from varve.monitoring.progress_text import ProgressText
from varve.monitoring.run_counters import Block, RunCounters, Snapshot
from varve.monitoring.source_sizes import SourceSizes
from varve.ranges import Range, missing


def growing_run(rows_done: int) -> tuple[ProgressText, RunCounters]:
    """A shard of 1,000 rows whose row n has n tokens, of which so many rows are encoded, ten per second."""
    cells = {0: missing([], 10)}
    sizes = SourceSizes.of((1000,), None, cells)
    text = ProgressText(0, 1000, remaining=sizes.remaining(cells, 10), replicas=2, lanes=4)
    counters = RunCounters(1000, sizes=sizes)
    counters.join({}, "actor", "node")
    for row in range(0, rows_done, 10):
        counters.add(Block(10, sum(range(row, row + 10)), seconds={"encode": 1.5}), Range(0, row, row + 10), 0)
        text.describe(counters.snapshot(), row / 10)
    return text, counters


def test_time_left_follows_the_tokens_of_texts_that_grow():
    text, counters = growing_run(300)
    line = text.describe(counters.snapshot(), 29.0)
    tokens_left, speed = sum(range(300, 1000)), sum(range(300)) / 29
    minutes, seconds = line.split(" · ")[1].removesuffix(" left").split(":")
    assert abs(60 * int(minutes) + int(seconds) - tokens_left / speed) < 0.25 * tokens_left / speed
    assert text.share(counters.snapshot()) == 0.3


def test_line_shows_replicas_that_are_missing_or_were_lost_and_the_busiest_stage():
    text, counters = growing_run(300)
    counters.join({}, "actor", "node")
    for _ in range(2):
        counters.begin("encode", Range(0, 300, 310), 0)
    figures = text.describe(counters.snapshot(), 29.0).split(" · ")
    assert figures[0] == "30%"
    assert figures[-4:] == [
        "1 of 2 replicas",
        "1 replica restart(s)",
        "1 part(s) started again",
        "encode 75% busy",  # 1.5 s of work per second, of two lanes
    ]


def test_line_before_the_first_block_shows_how_many_replicas_are_ready():
    text = ProgressText(0, 100, replicas=4)
    assert text.describe(Snapshot(replicas=3), 0.0) == "3 of 4 replicas ready, encoding the first block"


@pytest.fixture
def notebook(monkeypatch) -> list[str]:
    """What the cell of a notebook has shown."""
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)

    def display(content: str, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        shown.append(content)
        return handle

    shell = SimpleNamespace(kernel=object())
    module = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display, HTML=str))
    monkeypatch.setitem(sys.modules, "IPython", module)
    return shown


def test_notebook_shows_one_bar_that_is_updated_in_place(notebook, monkeypatch):
    monkeypatch.setattr(progress_line, "_NOTEBOOK_INTERVAL_S", 0.01)
    with ProgressLine(lambda: Snapshot(rows=25, replicas=1), ProgressText(0, 100), None):
        wait_until(lambda: len(notebook) > 2, "two updates")
    assert 'value="0.2500"' in notebook[-1]
    assert "25 of 100 rows" in notebook[-1]


def test_notebook_keeps_what_was_done_at_the_end(notebook, monkeypatch):
    monkeypatch.setattr(progress_line, "_NOTEBOOK_INTERVAL_S", 3600)
    with ProgressLine(lambda: Snapshot(rows=100, replicas=1), ProgressText(0, 100), None):
        assert 'value="1.0000"' not in notebook[-1]
    assert 'value="1.0000"' in notebook[-1]


def test_terminal_of_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert NotebookLine.in_notebook() is None


def test_text_of_a_bar_is_escaped():
    content = bar_html('<script>"', 2.0)
    assert "<script>" not in content
    assert "&lt;script&gt;&quot;" in content
    assert 'value="1.0000"' in content
    assert "value" not in bar_html("text", None)
