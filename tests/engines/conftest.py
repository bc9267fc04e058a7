"""The engines, each started once for all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.engine import Engine
from varve.lake.iceberg.catalog import open_catalog

TIMEOUT_S = 600  # the engines take tens of seconds on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def run(folder: Path, environment: str, script: str, *arguments: str) -> Iterator[Engine]:
    engine = Engine(environment, script, folder, *arguments)
    yield engine
    engine.end()


@pytest.fixture(scope="session")
def spark(tmp_path_factory) -> Iterator[Engine]:
    """Spark, whose catalog `local` has its warehouse in `folder / "warehouse"`."""
    if shutil.which("java") is None:
        pytest.skip("java is missing: run make servers")
    folder = tmp_path_factory.mktemp("spark")
    yield from run(folder, "spark", "spark.py", str(folder / "warehouse"))


@pytest.fixture(scope="session")
def sail(tmp_path_factory) -> Iterator[Engine]:
    yield from run(tmp_path_factory.mktemp("sail"), "sail", "sail.py")


@pytest.fixture(scope="session")
def duck(tmp_path_factory) -> Iterator[Engine]:
    """DuckDB and daft."""
    yield from run(tmp_path_factory.mktemp("duck"), "duckdb", "duck.py")


@pytest.fixture(scope="session")
def catalog(tmp_path_factory) -> Iterator[Path]:
    """The folder of the Iceberg catalog `lake`, which pyiceberg and Varve find in the environment."""
    folder = tmp_path_factory.mktemp("catalog")
    settings = {"URI": f"sqlite:///{folder}/catalog.db", "WAREHOUSE": f"file://{folder}/warehouse"}
    variables = {f"PYICEBERG_CATALOG__LAKE__{name}": value for name, value in settings.items()}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setitem(os.environ, name, value)
        open_catalog("lake").create_namespace("db")
        yield folder
