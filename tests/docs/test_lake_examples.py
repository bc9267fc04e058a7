"""The page on lake tables runs from its first block to its last, in one folder, and prints what the page shows.

Python blocks run in processes of their own, as a reader's scripts do; commands run here and share one Ray.
"""

import re
import subprocess
import sys
from itertools import pairwise

import pytest
import ray

from tests.docs.pages import LAKES, MODEL_ID, Block, blocks, commands
from tests.docs.test_examples import labels
from varve.cli.demo import write_docstrings
from varve.cli.main import run_command

ROWS = 400
EXAMPLES = [
    pytest.param(block, after.text if after.language == "text" else "", id=str(block))
    for block, after in pairwise([*blocks(LAKES), Block(LAKES, 0, "text", "")])
    if block.language in {"bash", "python", "yaml"}
]
_EXPORT = re.compile(r"^export (\w+)=(.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder in which `make demo` has left its source, with the variables that the page sets."""
    folder = tmp_path_factory.mktemp("workspace")
    write_docstrings(folder / "demo-output/docstrings", ROWS)
    ray.shutdown()  # its workers have the variables of this process at their start
    with pytest.MonkeyPatch.context() as patched:
        for block in blocks(LAKES):
            for name, value in _EXPORT.findall(block.text):
                patched.setenv(name, value.replace("$PWD", str(folder)))
        patched.chdir(folder)
        yield folder
    ray.shutdown()


@pytest.mark.parametrize(("block", "shown"), EXAMPLES)
def test_example_of_lakes_runs_and_prints_what_is_shown(block, shown, workspace, minilm, capfd):
    text = block.text.replace(MODEL_ID, minilm)
    match block.language:
        case "yaml":
            (workspace / (block.file or "")).write_text(text)
        case "python":
            subprocess.run([sys.executable, "-c", text], check=True)
        case "bash":
            for command in commands(text):
                assert run_command(command.argv) == 0, capfd.readouterr().err
    printed = capfd.readouterr().out
    assert labels(shown) <= labels(printed), printed
    assert counts(shown) <= counts(printed), printed


def counts(text: str) -> set[str]:
    """The counts of runs after a change; the first run of the page has more rows than here."""
    return set(re.findall(r"\d+ new, [1-9]\d* changed", text))
