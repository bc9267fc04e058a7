"""`varve index` and `index` on Ray."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
import pytest

from tests.index_sources import write_source
from tests.servers.cluster import TOKEN, ray_head
from varve import JobError, RunError, index
from varve.cluster.connection import start_ray
from varve.config.compute import Compute
from varve.config.index import Index
from varve.engine.parallel import in_threads
from varve.engine.ray_tasks import spread
from varve.indexing.build import build

KIND = "IVF32,SQ8"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "_varve" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return write_source(tmp_path_factory.mktemp("run") / "features", rows=3000)


def test_index_built_in_ray_tasks_equals_that_of_threads(run, tmp_path):
    start_ray(Compute())
    for name, work in (("ray", spread), ("threads", in_threads)):
        settings = {"path": run, "to": f"faiss:{tmp_path / name}", "kind": KIND, "keep": ["title"]}
        build(Index.parse(settings), work)
    assert digests(tmp_path / "ray") == digests(tmp_path / "threads")


def test_index_of_a_program_leaves_its_ray_connected(run, tmp_path):
    import ray

    start_ray(Compute())
    record = index(run, f"faiss:{tmp_path / 'index'}", kind=KIND)
    assert ray.is_initialized()
    assert record.measurements[-1].low >= 0.95


def test_refusal_in_a_task_is_the_message_alone_whatever_its_cause_is():
    class Unpicklable(Exception):  # noqa: N818 (as errors of database clients)
        def __reduce__(self):
            msg = "cannot be pickled"
            raise TypeError(msg)

    def refuse(_item):
        msg = "the key is not unique"
        raise JobError(msg) from Unpicklable()

    start_ray(Compute())
    with pytest.raises(JobError) as refusal:
        list(spread(refuse, [1]))
    assert str(refusal.value) == "the key is not unique"


def test_each_item_is_loaded_by_the_task_that_works_on_it_alone(tmp_path):
    class Item:
        def __init__(self, number):
            self.number = number

        def __setstate__(self, state):
            self.number = state["number"]
            (tmp_path / f"{self.number}-{uuid4()}").touch()

    start_ray(Compute())
    found = spread(lambda item: item.number, [Item(number) for number in range(40)])
    assert sorted(found) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 40


def test_relative_destination_is_that_of_the_program_in_every_task(run, tmp_path, monkeypatch):
    """Workers have another current folder."""
    monkeypatch.chdir(tmp_path)
    build(Index.parse({"path": run, "to": "faiss:index", "kind": KIND}), spread)
    assert digests(tmp_path / "index")


def test_failure_in_a_task_ends_in_one_message_and_the_next_build_continues(run, tmp_path):
    """A part that is lost while the index is built: the message names it."""
    start_ray(Compute())
    copied = Path(shutil.copytree(run, tmp_path / "features"))
    lost = max(copied.glob("data/*"))
    content = lost.read_bytes()
    lost.write_bytes(content[: len(content) // 2])
    settings = Index.parse({"path": str(copied), "to": f"faiss:{tmp_path / 'index'}", "kind": KIND})
    with pytest.raises(RunError, match=lost.name):
        build(settings, spread)
    assert not (tmp_path / "index/_varve/manifest.json").exists()
    lost.write_bytes(content)
    assert build(settings, spread).record.request.num_vectors == 2997


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_index_of_the_command_joins_a_cluster_with_and_without_a_token(run, tmp_path, mode):
    """The home folder has a token: a cluster without one would not answer a driver that uses it."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text(TOKEN)
    with ray_head(RAY_AUTH_MODE=mode) as head:
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "RAY_ADDRESS": head.ray_address}
        command = [sys.executable, "-m", "varve", "index", run, "--to", f"faiss:{tmp_path / 'index'}", "--kind", KIND]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    ids = sorted((tmp_path / "index/ids").glob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in ids) == 2997
