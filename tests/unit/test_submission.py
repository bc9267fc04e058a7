"""What is sent to a cluster, and what the cluster checks before it runs any of it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.spec.job import Job
from pipeline.submission.head import name_of
from pipeline.submission.package import START_FILE, local_paths, packed
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def job(**changes) -> Job:
    content = {
        "source": {"dataset": "parquet", "data_files": "s3://lake/*.parquet", "text": "body"},
        "model": {"name": "bert-base-uncased"},
        "output": {"path": "s3://lake/out"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section] = content.get(section, {}) | ({name: value} if name else value)
    return Job.parse(content)


def start(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *flags, START_FILE, "embed", "--help"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def describe_kernel(folder: Path) -> str:
    """The compiled attention that the package in a folder finds."""
    asked = "from pipeline.encoder.kernel import find_kernel; print(find_kernel())"
    command = [sys.executable, "-c", asked]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def runs(python: str) -> bool:
    return shutil.which(python) is not None and subprocess.run([python, "-c", ""], check=False).returncode == 0


def test_package_runs_from_its_folder_alone():
    with packed(job(), with_code=True) as folder:
        done = start(folder)
    assert done.returncode == 0
    assert "usage: varve embed" in done.stdout


def test_package_brings_along_what_was_compiled_here():
    here = describe_kernel(ROOT)
    with packed(job(), with_code=True) as folder:
        assert describe_kernel(folder) == here


def test_package_of_an_installed_varve_holds_the_job_alone():
    with packed(job(), with_code=False) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["job.yaml", START_FILE]
        assert Job.load(str(folder / "job.yaml")) == job()


@pytest.mark.parametrize("with_code", [True, False])
def test_modules_of_the_job_are_packed_whatever_they_are_called(tmp_path, with_code):
    texts = {"start.py": "import kit.é\ndef f(rows): ...", "kit/é.py": "name = 'é'"}
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    own = {"embedding": {"pool": "mean"}, "mine": {"python": "start:f", "type": "bool"}}
    with packed(job(features=own).at(str(tmp_path)), with_code=with_code) as folder:
        assert {path: (folder / path).read_text(encoding="utf-8") for path in texts} == texts
        assert "usage: varve embed" in start(folder).stdout


def test_python_of_the_cluster_that_is_too_old_is_named(tmp_path):
    older = next(filter(runs, (f"python3.{minor}" for minor in (10, 9, 8, 7, 6))), None)
    run = f"runpy.run_path({START_FILE!r}, run_name='__main__')"
    stand_in = f"import runpy, sys; sys.version_info = (3, 9, 18); {run}"
    with packed(job(), with_code=True) as folder:
        command = [older, START_FILE] if older else [sys.executable, "-c", stand_in]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "the cluster's Python is 3." in done.stderr
    assert "needs 3.11 or newer" in done.stderr


def test_packages_that_the_cluster_lacks_are_all_named():
    with packed(job(), with_code=True) as folder:
        (metadata,) = folder.glob("*.dist-info/METADATA")
        fields, _, description = metadata.read_text().partition("\n\n")
        more = "Requires-Dist: not-there-at-all>=1\nRequires-Dist: torch>=99"
        metadata.write_text(f"{fields}\n{more}\n\n{description}")
        done = start(folder)
    assert done.returncode == 2
    assert "not-there-at-all>=1: missing" in done.stderr
    assert "torch>=99: found" in done.stderr


@pytest.mark.parametrize("change", [{"compute__replicas": 4}, {"compute__env": ["TOKEN"]}, {"output__max_errors": 3}])
def test_same_output_by_other_hardware_is_the_same_submission(change):
    assert name_of(job(**change)) == name_of(job())


@pytest.mark.parametrize("change", [{"output__path": "s3://lake/other"}, {"model__max_tokens": 32}])
def test_another_output_is_another_submission(change):
    assert name_of(job(**change)) != name_of(job())


def test_paths_on_disks_are_told_from_hub_ids_and_urls(tmp_path):
    assert local_paths(job()) == {}
    assert local_paths(job(output__path="out")) == {"output.path": "out"}
    assert local_paths(job(model__name=str(tmp_path))) == {"model.name": str(tmp_path)}
    assert local_paths(job(source__data_files=["a/*.csv", "s3://b/c.csv"])) == {"source.data_files[0]": "a/*.csv"}
