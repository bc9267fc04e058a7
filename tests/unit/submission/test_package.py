"""The folder that is sent to a cluster, and the checks that the cluster runs first."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.waiting import PATIENCE_S
from varve.cli.cluster_client import shared_paths
from varve.cli.submit import finished
from varve.config.job import Job
from varve.errors import JobError
from varve.output.manifest import JOB_NAME, Manifest, publish
from varve.output.part_table import PartTable
from varve.storage.object_store import Storage
from varve.submission.jobs_client import submission_name
from varve.submission.package import START_FILE, job_code, local_paths, package_folder

ROOT = Path(__file__).parents[3]


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
    """The compiled library that the package in a folder finds."""
    code = "from varve.encoder.kernels.cpu_library import find_cpu_library; print(find_cpu_library())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def runs(python: str) -> bool:
    return shutil.which(python) is not None and subprocess.run([python, "-c", ""], check=False).returncode == 0


def test_package_runs_from_its_folder_alone():
    with package_folder(job(), with_code=True) as folder:
        done = start(folder)
    assert done.returncode == 0
    assert "usage: varve embed" in done.stdout


@pytest.mark.slow
def test_package_contains_the_compiled_library():
    local = describe_kernel(ROOT)
    with package_folder(job(), with_code=True) as folder:
        assert describe_kernel(folder) == local


def test_package_for_an_installed_varve_holds_only_the_job():
    with package_folder(job(), with_code=False) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["job.yaml", START_FILE]
        assert Job.load(str(folder / "job.yaml")) == job()


@pytest.mark.parametrize("with_code", [True, False])
def test_modules_of_the_job_are_packed_whatever_they_are_called(tmp_path, with_code):
    texts = {"start.py": "import kit.é\ndef f(rows): ...", "kit/é.py": "name = 'é'"}
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    own = {"embedding": {"pool": "mean"}, "mine": {"python": "start:f", "type": "bool"}}
    with package_folder(job(features=own).in_folder(str(tmp_path)), with_code=with_code) as folder:
        assert {path: (folder / path).read_text(encoding="utf-8") for path in texts} == texts
        assert "usage: varve embed" in start(folder).stdout


def test_python_of_the_cluster_that_is_too_old_is_named(tmp_path):
    older = next(filter(runs, (f"python3.{minor}" for minor in (10, 9, 8, 7, 6))), None)
    run = f"runpy.run_path({START_FILE!r}, run_name='__main__')"
    simulated = f"import runpy, sys; sys.version_info = (3, 9, 18); {run}"
    with package_folder(job(), with_code=True) as folder:
        command = [older, START_FILE] if older else [sys.executable, "-c", simulated]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "the cluster's Python is 3." in done.stderr
    assert "needs 3.11 or newer" in done.stderr


def test_packages_that_the_cluster_lacks_are_all_named():
    with package_folder(job(), with_code=True) as folder:
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
    assert submission_name(job(**change)) == submission_name(job())


@pytest.mark.parametrize("change", [{"output__path": "s3://lake/other"}, {"model__max_tokens": 32}])
def test_another_output_is_another_submission(change):
    assert submission_name(job(**change)) != submission_name(job())


def test_local_paths_are_distinguished_from_hub_ids_and_urls(tmp_path):
    assert local_paths(job()) == {}
    assert local_paths(job(output__path="out")) == {"output.path": "out"}
    assert local_paths(job(model__name=str(tmp_path))) == {"model.name": str(tmp_path)}
    assert local_paths(job(source__data_files=["a/*.csv", "s3://b/c.csv"])) == {"source.data_files[0]": "a/*.csv"}


def finish(made: Job, code: dict[str, str]) -> None:
    """Write the manifest and the plan of a finished run of the job."""
    storage = Storage(made.output.path)
    content = made.model_dump(mode="json")
    numbers = dict.fromkeys(("num_rows", "num_tokens", "num_errors", "num_truncated", "file_bytes"), 0)
    mappings = ("counts", "storage", "seconds", "stages", "encoder", "canary", "versions", "resolved")
    nothing: dict = {**numbers, **{name: {} for name in mappings}, "started_at": "then"}
    named = {"path": storage.uri, "fingerprint": "f" * 64, "finished_at": "then"}
    publish(storage, Manifest(**named, **nothing, job=content, parts=PartTable.of(())))
    schema = base64.b64encode(pa.schema({}).serialize().to_pybytes()).decode()
    hashes = dict.fromkeys(("weights_sha256", "tokenizer_sha256", "config_sha256"), "a" * 64)
    sizes = dict.fromkeys(("num_shards", "max_tokens", "tokens_per_pack", "block_rows", "rows_per_part"), 1)
    resolved = {"source_commit": None, "source_identity": "a" * 64, "model_commit": None, "dtype": "float32"}
    saved: dict = {"fingerprint": "f" * 64, "created_at": "then", "job": content}
    saved["resolved"] = {**resolved, **hashes, **sizes, "schema": schema}
    saved["source"] = {"files": ["a"], "versions": None, "shards": {"files": None, "rows": None}}
    saved |= {"code": {"folder": ".", "identity": code}} if code else {}
    assert storage.create(JOB_NAME, json.dumps(saved).encode())


def test_finished_job_is_done_until_the_code_of_its_functions_changes(tmp_path):
    module = tmp_path / "my_features.py"
    module.write_text("def overlap(rows):\n    return rows['body']\n")
    features = {"mean": {"pool": "mean"}, "overlap": {"python": "my_features:overlap", "type": "string"}}
    content = {**job(output__path=str(tmp_path / "out")).model_dump(mode="json"), "features": features}
    made = Job.parse(content).in_folder(str(tmp_path))
    assert finished(made, None) is None
    finish(made, {"features.overlap.code": job_code(made)[0].sha256})
    assert "is complete since then" in (finished(made, None) or "")
    module.write_text("def overlap(rows):\n    return rows['body'].fill_null('')\n")
    assert finished(made, None) is None


def test_finished_job_without_functions_is_done(tmp_path):
    made = job(output__path=str(tmp_path / "out"))
    finish(made, {})
    assert "is complete since then" in (finished(made, None) or "")


@pytest.mark.parametrize("path", ["file:///mnt/docs/*.parquet", "/mnt/docs/*.parquet"])
def test_absolute_path_must_exist_on_every_node(path):
    assert shared_paths(job(source__data_files=path)) == ["/mnt/docs/*.parquet"]


@pytest.mark.parametrize("path", ["file://docs/*.parquet", "docs/*.parquet"])
def test_relative_path_is_refused(path):
    with pytest.raises(JobError, match=r"source\.data_files\[0\]: .* is a relative path"):
        shared_paths(job(source__data_files=path))
