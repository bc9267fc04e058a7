"""The page on search runs from its first block to its last, with PostgreSQL, Qdrant's engine and OpenSearch's API.

The blocks share one folder and, like a reader's session, the names of the Python blocks before them.
"""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.docs.pages import MODEL_ID, SEARCH, blocks, commands
from tests.servers.opensearch import opensearch
from tests.servers.postgres import postgres
from tests.servers.qdrant import qdrant
from varve.cli.demo import make_job, write_docstrings
from varve.cli.main import run_command
from varve.config.index import Index
from varve.driver.embed import embed

ROWS, EVERY = 2000, 4
EXAMPLES = [block for block in blocks(SEARCH) if block.language in {"bash", "python", "yaml"}]
NAMES: dict[str, Any] = {"__name__": "__main__"}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Any:
    """Address on the page → address of a server of the tests."""
    with ExitStack() as running:
        database = running.enter_context(postgres())
        destination = database.destination(database.create_database())
        engine = running.enter_context(qdrant(tmp_path_factory.mktemp("qdrant")))
        url = running.enter_context(opensearch(tmp_path_factory.mktemp("opensearch")))
        yield {
            "me@localhost/lake?table=docs": destination,
            "me@localhost/lake": destination.partition("?")[0],
            "localhost:6333": engine.host,
            "http://localhost:9200": url,
        }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, minilm) -> Path:
    """A folder with the output of the README's job, with fewer rows."""
    folder = tmp_path_factory.mktemp("workspace")
    write_docstrings(folder / "docstrings", ROWS)
    for path in (folder / "docstrings").glob("*.parquet"):
        docstrings = pq.read_table(path)
        pq.write_table(docstrings.take(list(range(0, docstrings.num_rows, EVERY))), path)
    embed(make_job(folder, Path(minilm)))
    return folder


@pytest.mark.parametrize("block", EXAMPLES, ids=str)
def test_example_of_search_runs(block, workspace, places, minilm, monkeypatch, capfd):
    monkeypatch.chdir(workspace)
    text = block.text.replace(MODEL_ID, minilm)
    for written, real in places.items():
        text = text.replace(written, real)
    match block.language:
        case "yaml":
            Path(block.file or "").write_text(text)
            Index.load(block.file or "")
        case "python":
            exec(compile(text, str(block), "exec"), NAMES)
        case "bash":
            for command in commands(text):
                if not any("s3://" in argument for argument in command.argv):
                    assert run_command(command.argv) == 0, capfd.readouterr().err
    printed = capfd.readouterr().out
    if "print([" in text or ".tolist())" in text or ".to_pylist())" in text:
        assert re.search(r"[a-z]+\.\w+", printed), printed  # names of docstrings
