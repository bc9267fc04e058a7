"""Whole runs on real object stores, as commands; workers get their credentials from the environment only."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers.processes import ray_folder
from tests.servers.stores import SECRET_KEY, empty_container
from tests.waiting import RUN_S, wait_until
from varve.cli.main import run_command
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

ROWS = 90


@pytest.fixture(scope="session")
def arguments(tiny):
    def make(source: str, output: str, *settings: str) -> list[str]:
        job = ["--dataset", "parquet", "--data-files", source, "--text", "text", "--model", tiny("bert")]
        more = [part for s in ("output.rows_per_part=10", *settings) for part in ("--set", s)]
        return [*job, "--output", output, *more]

    return make


@pytest.fixture(scope="session")
def command(arguments):
    """The command of a run in a separate process; the workers of its Ray have the environment of this test."""

    def make(*job: str) -> list[str]:
        return [sys.executable, "-m", "varve", "embed", *arguments(*job)]

    return make


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for shard in range(3):
        texts = [f"text {row} of {shard}" for row in range(ROWS // 3)]
        pq.write_table(pa.table({"text": texts}), folder / f"{shard}.parquet")
    return folder


def upload(docs: Path, address: str) -> str:
    storage = Storage(f"{address}/source")
    assert all(storage.create(path.name, path.read_bytes()) for path in docs.iterdir())
    return f"{address}/source/*.parquet"


def finish(argv: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)


def watch(argv: list[str], folder: Path) -> tuple[subprocess.CompletedProcess, list[bytes]]:
    """Run a command; returns what it printed and what the files of a folder held until it removed them."""
    held: dict[Path, bytes] = {}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        for path in folder.rglob("*"):
            with suppress(OSError):  # a socket, or removed meanwhile
                held[path] = path.read_bytes()
        time.sleep(0.1)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, output, errors), list(held.values())


def written(storage: Storage) -> pa.Table:
    parts = [storage.read(found.name) for found in storage.list("data")]
    return pa.concat_tables(pq.read_table(pa.BufferReader(part)) for part in parts)


def each_once(table: pa.Table) -> bool:
    pairs = list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    return sorted(pairs) == [(shard, row) for shard in range(3) for row in range(ROWS // 3)]


def test_run_from_s3_to_s3_outlives_faults_and_counts_retries(container, faulty, docs, command):
    control = faulty("radosgw")
    address = container("radosgw", control.endpoint)
    source = upload(docs, address)
    control.faults(slow_down=0.3, reset=0.2, lost=0.15, seed=5, methods="PUT,GET", match="out")
    done = finish(command(source, f"{address}/out"))
    assert done.returncode == 0, done.stderr
    counts = control.counts()
    control.faults()
    manifest = read_manifest(Storage(f"{address}/out"))
    assert manifest is not None
    assert min(counts["slow_down"], counts["reset"], counts["lost"]) > 0
    assert 0 < manifest.storage["retries"] <= sum(counts[fault] for fault in ("slow_down", "reset", "lost")) * 2
    assert manifest.storage["create_if_absent"]
    assert "retried" in done.stdout
    assert each_once(written(Storage(f"{address}/out")))


def test_reading_a_source_outlives_faults(container, faulty, docs, command, tmp_path):
    control = faulty("radosgw")
    source = upload(docs, container("radosgw", control.endpoint))
    control.faults(slow_down=0.2, reset=0.1, seed=6, match="source")
    done = finish(command(source, str(tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    assert each_once(written(Storage(str(tmp_path / "out"))))


@dataclass
class Finished:
    """The output of a run: what it printed, its objects, its rows, and the files in its Ray's session."""

    done: subprocess.CompletedProcess
    objects: dict[str, bytes]
    rows: pa.Table
    session: list[bytes]


@pytest.fixture(scope="module")
def between_stores(servers, docs, tiny, tmp_path_factory):
    """One run whose source is in another store than its output; only its storage_options name the source's store."""
    job = tmp_path_factory.mktemp("job") / "job.yaml"
    with pytest.MonkeyPatch.context() as environment, ray_folder() as ray:
        source = upload(docs, empty_container(servers, environment, "moto"))
        address = empty_container(servers, environment, "radosgw")
        options = {"endpoint_url": servers("moto")}
        content = {
            "source": {"dataset": "parquet", "data_files": source, "text": "text", "storage_options": options},
            "model": {"name": tiny("bert")},
            "output": {"path": f"{address}/out", "rows_per_part": 10},
        }
        job.write_text(json.dumps(content))
        environment.setenv("RAY_TMPDIR", ray)
        done, session = watch([sys.executable, "-m", "varve", "embed", str(job), "--json"], Path(ray))
        assert done.returncode == 0, done.stderr
        storage = Storage(f"{address}/out")
        objects = {entry.name: storage.read(entry.name) or b"" for entry in storage.list("")}
        yield Finished(done, objects, written(storage), session)


def test_source_of_another_endpoint_than_the_output_is_read_by_its_storage_options(between_stores):
    assert json.loads(between_stores.done.stdout)["num_rows"] == ROWS
    assert each_once(between_stores.rows)


def test_secret_appears_nowhere(between_stores):
    secret = SECRET_KEY.encode()
    printed = (between_stores.done.stdout + between_stores.done.stderr).encode()
    assert "_varve/manifest.json" in between_stores.objects
    assert between_stores.session
    kept = (printed, *between_stores.objects.values(), *between_stores.session)
    assert not any(secret in content for content in kept)


@pytest.mark.parametrize("server", ["azurite", "gcs"])
def test_run_to_other_clouds_holds_each_row_once(container, docs, command, server):
    address = container(server)
    done = finish(command(str(docs / "*.parquet"), f"{address}/some/out"))
    assert done.returncode == 0, done.stderr
    assert each_once(written(Storage(f"{address}/some/out")))


def test_two_drivers_on_one_output_give_one_right_result(container, docs, command):
    address = container("radosgw")
    argv = command(str(docs / "*.parquet"), f"{address}/out")
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=RUN_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    storage = Storage(f"{address}/out")
    assert each_once(written(storage))
    assert read_manifest(storage) is not None
    assert sum("another run" in error for _, error in printed) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "SKTEST-wrong"}, "SignatureDoesNotMatch (403)"),
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "InvalidAccessKeyId (403)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Connection refused"),
        ({"BUCKET": "s3://no-such-bucket"}, "NoSuchBucket (404)"),
    ],
)
def test_wrong_access_exits_with_1_and_the_store_s_message(
    container, docs, arguments, monkeypatch, capfd, change, message
):
    address = change.get("BUCKET") or container("radosgw")
    container("radosgw")
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    assert run_command(["embed", *arguments(str(docs / "*.parquet"), f"{address}/out")]) == 1
    printed = capfd.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert "SKTEST" not in printed.out + printed.err


def test_read_only_bucket_exits_with_1_before_the_model_is_loaded(container, docs, arguments, read_only, capfd):
    """The model does not exist, which would be exit code 2 if the bucket were not checked first."""
    address = container("radosgw")
    with read_only(address):
        job = arguments(str(docs / "*.parquet"), f"{address}/out", "model.name=/no/such/model")
        assert run_command(["embed", *job]) == 1
    assert "AccessDenied (403)" in capfd.readouterr().err


def test_source_file_replaced_in_a_run_is_refused_and_named(arguments, command, tmp_path, capfd):
    """The file is replaced after planning. It is so large that the run still reads it then."""
    source, output = tmp_path / "0.parquet", tmp_path / "out"
    texts = [f"text {row} " * 20 for row in range(60_000)]
    pq.write_table(pa.table({"text": texts}), source, row_group_size=1000)
    job = (str(source), str(output), "output.rows_per_part=500")
    process = subprocess.Popen(command(*job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((output / "_varve/job.json").exists, "the run has started", alive=process, timeout_s=RUN_S)
    os.utime(source, (1, 1))
    _, errors = process.communicate(timeout=RUN_S)
    assert process.returncode == 1
    assert "0.parquet) has changed since the run was planned" in errors
    assert run_command(["embed", *arguments(*job)]) == 2
    assert "source file 0.parquet" in capfd.readouterr().err
