"""Whole runs on real object stores, as commands: their workers get what the environment holds, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest import read_manifest
from pipeline.storage.objects import Storage
from tests.servers.stores import SECRET_KEY

ROWS = 90
PATIENCE_S = 240


@pytest.fixture
def command(tiny):
    def make(source: str, output: str, *settings: str) -> list[str]:
        job = ["--dataset", "parquet", "--data-files", source, "--text", "text", "--model", tiny("bert")]
        more = [part for s in ("output.rows_per_part=10", *settings) for part in ("--set", s)]
        return [sys.executable, "-m", "jobs.embed", *job, "--output", output, *more]

    return make


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "docs").mkdir()
    for shard in range(3):
        texts = [f"text {row} of {shard}" for row in range(ROWS // 3)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"docs/{shard}.parquet")
    return tmp_path / "docs"


def upload(docs: Path, address: str) -> str:
    storage = Storage(f"{address}/source")
    assert all(storage.create(path.name, path.read_bytes()) for path in docs.iterdir())
    return f"{address}/source/*.parquet"


def finish(argv: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def written(storage: Storage) -> pa.Table:
    parts = [storage.read(found.name) for found in storage.list("data")]
    return pa.concat_tables(pq.read_table(pa.BufferReader(part)) for part in parts)


def each_once(table: pa.Table) -> bool:
    pairs = list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    return sorted(pairs) == [(shard, row) for shard in range(3) for row in range(ROWS // 3)]


def test_run_from_s3_to_s3_outlives_faults_and_counts_retries(container, spoiled, docs, command):
    control = spoiled("radosgw")
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
    assert "request(s) made again" in done.stdout
    assert each_once(written(Storage(f"{address}/out")))


def test_reading_a_source_outlives_faults(container, spoiled, docs, command, tmp_path):
    control = spoiled("radosgw")
    source = upload(docs, container("radosgw", control.endpoint))
    control.faults(slow_down=0.2, reset=0.1, seed=6, match="source")
    done = finish(command(source, str(tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    assert each_once(written(Storage(str(tmp_path / "out"))))


def test_source_of_another_endpoint_than_the_output_is_read_by_its_storage_options(
    container, servers, docs, command, tmp_path, monkeypatch
):
    source = upload(docs, container("moto"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = f"source.storage_options={{endpoint_url: '{servers('moto')}'}}"
    done = finish(command(source, str(tmp_path / "out"), options))
    assert done.returncode == 0, done.stderr
    assert each_once(written(Storage(str(tmp_path / "out"))))


def test_run_to_azure(container, docs, command):
    address = container("azurite")
    done = finish(command(str(docs / "*.parquet"), f"{address}/some/out"))
    assert done.returncode == 0, done.stderr
    assert each_once(written(Storage(f"{address}/some/out")))


def test_two_drivers_on_one_output_end_with_one_right_result(container, docs, command):
    address = container("radosgw")
    argv = command(str(docs / "*.parquet"), f"{address}/out")
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=PATIENCE_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    storage = Storage(f"{address}/out")
    assert each_once(written(storage))
    assert read_manifest(storage) is not None
    assert sum("another run" in error for _, error in told) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "SKTEST-wrong"}, "SignatureDoesNotMatch (403)"),
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "InvalidAccessKeyId (403)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Connection refused"),
        ({"BUCKET": "s3://no-such-bucket"}, "NoSuchBucket (404)"),
    ],
)
def test_wrong_access_exits_with_1_in_the_words_of_the_store(container, docs, command, monkeypatch, change, words):
    address = change.pop("BUCKET", None) or container("radosgw")
    container("radosgw")
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    done = finish(command(str(docs / "*.parquet"), f"{address}/out"))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "SKTEST" not in done.stdout + done.stderr


def test_bucket_that_may_only_be_read_exits_with_1(container, docs, command, read_only):
    address = container("radosgw")
    with read_only(address):
        done = finish(command(str(docs / "*.parquet"), f"{address}/out"))
    assert done.returncode == 1
    assert "AccessDenied (403)" in done.stderr


def test_secret_appears_nowhere(container, docs, command, tmp_path):
    address = container("radosgw")
    source = upload(docs, address)
    done = finish([*command(source, f"{address}/out"), "--json"])
    assert done.returncode == 0, done.stderr
    secret = SECRET_KEY.encode()
    assert secret not in (done.stdout + done.stderr).encode()
    storage = Storage(f"{address}/out")
    assert not [found.name for found in storage.list("") if secret in (storage.read(found.name) or b"")]
    session = Path("/tmp/ray/session_latest").resolve()  # the logs, sockets and pickles of the Ray that has just ended
    files = [path for path in session.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]


def test_source_file_replaced_in_a_run_is_refused_and_named(docs, command, tmp_path):
    """The shard is larger than what is read ahead, so most of it is read after the change."""
    texts = [f"text {row} " * 20 for row in range(60_000)]
    pq.write_table(pa.table({"text": texts}), docs / "0.parquet", row_group_size=1000)
    argv = command(str(docs / "0.parquet"), str(tmp_path / "out"), "output.rows_per_part=500")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not list((tmp_path / "out").glob("data/*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)  # polls with a deadline
    os.utime(docs / "0.parquet", (1, 1))
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "0.parquet) has changed since the run was planned" in told
    again = finish(argv)
    assert again.returncode == 2
    assert "source file 0.parquet" in again.stderr
