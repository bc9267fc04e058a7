"""The wheel in an environment of its own, run from a folder whose files have the names of modules."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.clashing import OWN, run_ones, write_clashing

ROOT = Path(__file__).parents[2]
FUNCTION = """
def num_letters(rows):
    return [len(text.as_py()) for text in rows["text"]]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The site-packages of an environment with the wheel; dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for name in ("pipeline", "jobs", "infra"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, tree], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env/bin/python"
    (wheel,) = folder.glob("varve-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    return Path(sysconfig.get_path("purelib", vars=paths))


@pytest.fixture(scope="module")
def ready(environment):
    """The same, with the dependencies. Their .pth files are not read, so the editable install is not found."""
    (environment / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment.parents[2] / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """A user's folder: clashing names, a function in pipeline.py, a dataset and a job file."""
    folder = tmp_path_factory.mktemp("user")
    write_clashing(folder)
    (folder / "pipeline.py").write_text(FUNCTION)
    (folder / "docs").mkdir()
    texts = ["one text", "another one"] * 20
    pq.write_table(pa.table({"text": texts, "kind": [len(text) % 2 for text in texts]}), folder / "docs/0.parquet")
    job = {
        "source": {"dataset": "./docs", "text": "text", "keep": ["kind"]},
        "model": {"name": minilm, "max_tokens": 32},
        "features": {"embedding": {"pool": "mean"}, "num_letters": {"python": "pipeline:num_letters", "type": "int32"}},
        "output": {"path": "features"},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    return folder


def run(ready: Path, folder: Path, *command: str) -> str:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
    done = subprocess.run(
        [ready / command[0], *command[1:]], cwd=folder, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_brings_nothing_but_the_package(environment):
    assert {path.name.partition("-")[0] for path in environment.iterdir()} - {"dependencies.pth"} == {"varve"}
    assert (environment / "varve/py.typed").exists()
    assert {path.suffix for path in (environment / "varve/cli/deploy/templates").rglob("*.*")} == {".yaml", ".sbatch"}


def test_jobs_run_from_a_folder_of_clashing_names(ready, folder):
    assert json.loads(run(ready, folder, "varve", "plan", "job.yaml", "--json"))["num_rows"] == 40
    run(ready, folder, "varve", "embed", "job.yaml")
    assert pq.read_table(folder / "features/data")["num_letters"].to_pylist() == [8, 11] * 20
    run(ready, folder, "varve", "verify", "features", "--code", ".")
    run(ready, folder, "python", "-m", "varve", "probe", "features", "--label", "kind", "--output", "probed")
    assert "num_letters" in run(ready, folder, "varve", "render", "slurm", "job.yaml")
    assert run_ones(folder) == []


def test_package_is_imported_beside_a_pipeline_of_the_user(ready, tmp_path):
    write_clashing(tmp_path, OWN)
    (tmp_path / "pipeline.py").write_text(FUNCTION)
    program = "from varve import Encoder; import pipeline; print(Encoder.__module__, pipeline.num_letters.__module__)"
    assert run(ready, tmp_path, "python", "-c", program).split() == ["varve.encoder.encoder", "pipeline"]


def test_importing_the_package_imports_no_heavy_library(ready, tmp_path):
    program = (
        "import varve, sys; print(sorted({'torch', 'ray', 'pyarrow', 'datasets', 'transformers'} & {*sys.modules}))"
    )
    assert run(ready, tmp_path, "python", "-c", program).strip() == "[]"
