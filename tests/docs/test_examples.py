"""Every example of the documentation runs, page after page in one folder, and prints what the page shows.

Commands that need a cluster, a store or minutes are parsed in test_docs.py instead.
"""

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.docs.pages import INFRA, JOBS, MODEL_ID, README, ROOT, Block, blocks, commands
from varve.cli.demo import write_docstrings
from varve.cli.main import run_command

ROWS, EVERY = 1000, 4  # docstrings of the demo, of which one in so many
PAIRS = [pair for page in (README, JOBS, INFRA) for pair in pairwise([*blocks(page), Block(page, 0, "text", "")])]
EXAMPLES = [
    pytest.param(block, after.text if after.language == "text" else "", id=str(block))
    for block, after in PAIRS
    if block.language in {"bash", "python", "yaml"}
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A checkout in which `make demo` has left its source, shorter than usual."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "jobs/recipes", folder / "jobs/recipes")
    write_docstrings(folder / "demo-output/docstrings", ROWS)
    for path in (folder / "demo-output/docstrings").glob("*.parquet"):
        docstrings = pq.read_table(path)
        pq.write_table(docstrings.take(list(range(0, docstrings.num_rows, EVERY))), path)
    return folder


@pytest.mark.parametrize(("block", "shown"), EXAMPLES)
def test_example_runs_and_prints_what_is_shown(block, shown, workspace, minilm, monkeypatch, capfd):
    monkeypatch.chdir(workspace)
    text = block.text.replace(MODEL_ID, minilm)
    if block.file:
        Path(block.file).write_text(text)
    if block.language == "python":
        exec(compile(text, str(block), "exec"), {"__name__": "__main__"})
    if block.language == "bash":
        for command in commands(text):
            if command.is_local:
                assert run_command(command.argv) == 0, capfd.readouterr().err
    printed = capfd.readouterr()
    assert labels(shown) <= labels(printed.out + printed.err), printed.out


def labels(text: str) -> set[str]:
    """The first word of each line, numbers left out."""
    words = (line.split()[0] for line in text.splitlines() if line.strip())
    return {word for word in words if not re.search(r"\d", word) and os.sep not in word}
