"""Failures of a store: permanent errors are reported with the store's message, transient ones are retried."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S
from varve.config.job import Job
from varve.errors import RunError
from varve.output.object_names import OBJECT_NAMES
from varve.planning.saved_plan import prepare
from varve.storage.object_store import Storage
from varve.storage.retry import retries
from varve.storage.stale_uploads import find_stale_uploads

SOON_S = 15


def error_of(contact: Callable[[], object]) -> str:
    """The message of a first request's error, which must be raised soon and hold no secret."""
    began = time.monotonic()
    with pytest.raises(RunError) as raised:
        contact()
    assert time.monotonic() - began < SOON_S
    assert "SKTEST" not in str(raised.value)
    return str(raised.value)


def reading(storage: Storage) -> Callable[[], object]:
    return lambda: storage.read("a")


@pytest.mark.parametrize("server", ["radosgw", "azurite"])
def test_missing_bucket_is_not_an_object_that_is_not_there(container, server):
    scheme = container(server).partition("://")[0]
    message = error_of(reading(Storage(f"{scheme}://no-such-bucket/x")))
    assert f"{scheme}://no-such-bucket/x" in message
    assert "NoSuchBucket" in message or "ContainerNotFound" in message
    assert "Create the bucket" in message


def test_wrong_secret_is_reported_with_the_store_s_message(container, monkeypatch):
    address = container("radosgw")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SKTEST-wrong")
    message = error_of(reading(Storage(f"{address}/wrong-secret")))
    assert "SignatureDoesNotMatch (403)" in message
    assert "Check the credentials" in message


def test_unknown_key_is_reported_with_the_store_s_message(container, monkeypatch):
    address = container("radosgw")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "InvalidAccessKeyId (403)" in error_of(reading(Storage(f"{address}/wrong-key")))


def test_bucket_of_another_account_is_denied(container, read_only):
    address = container("radosgw")
    with read_only(address):
        storage = Storage(f"{address}/read-only")
        assert storage.read("a") is None
        with pytest.raises(RunError, match=r"AccessDenied \(403\)"):
            storage.check()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_wrong_endpoint_fails_soon_at_the_start(container, monkeypatch, endpoint):
    address = container("moto")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    path = f"{address}/nowhere-{endpoint[-4:]}"
    job = Job.parse({"source": {"dataset": "d", "text": "t"}, "model": {"name": "m"}, "output": {"path": path}})
    storage = Storage(path, patient=False)
    for contact in (reading(storage), lambda: prepare(job, storage, device="cpu")):
        message = error_of(contact)
        assert endpoint in message
        assert "Check the endpoint (AWS_ENDPOINT_URL" in message


def test_store_that_is_down_for_a_moment_is_retried(servers, container, monkeypatch, tmp_path):
    from tests.servers.processes import free_port
    from tests.servers.proxy import proxy

    address, port = container("moto"), free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    storage = Storage(f"{address}/restarting")
    made = []
    writer = threading.Thread(target=lambda: made.append(storage.create("a", b"x")))
    before = retries()
    writer.start()
    while retries() == before:  # until it was refused once
        time.sleep(0.01)
    with proxy(servers("moto"), tmp_path, port):
        writer.join(timeout=PATIENCE_S)
    assert made == [True]


def test_all_faults_at_once_are_retried_and_counted(container, faulty):
    control = faulty("radosgw")
    storage = Storage(f"{container('radosgw', control.endpoint)}/faults")
    control.faults(slow_down=0.3, reset=0.2, lost=0.15, truncate=0.1, seed=1)
    before = retries()
    with ThreadPoolExecutor(16) as threads:  # retries wait, so threads overlap
        names = [f"data/{number}" for number in range(40)]
        assert all(threads.map(lambda name: storage.create(name, name.encode() * 1000), names))
        assert list(threads.map(storage.read, names)) == [name.encode() * 1000 for name in names]
    assert sorted(found.name for found in storage.list("data")) == sorted(names)
    counts = control.counts()
    faults = sum(counts[fault] for fault in ("slow_down", "reset", "lost", "truncate"))
    assert faults > len(names)
    assert retries() - before > len(names)


def test_racing_writers_with_lost_answers_have_one_winner_each(container, faulty):
    control = faulty("radosgw")
    storage = Storage(f"{container('radosgw', control.endpoint)}/race")
    control.faults(lost=0.4, methods="PUT", seed=2)
    keys, writers = 25, 3
    with ThreadPoolExecutor(keys * writers) as threads:
        claims = [(key, b"writer %d" % writer) for key in range(keys) for writer in range(writers)]
        won = list(threads.map(lambda claim: storage.create(str(claim[0]), claim[1]), claims))
    assert control.counts()["lost"] > 0
    control.faults()
    for key in range(keys):
        winners = [content for (other, content), first in zip(claims, won, strict=True) if first and other == key]
        assert winners == [storage.read(str(key))]


def test_store_that_ignores_conditions_is_detected(container, faulty):
    control = faulty("moto")
    storage = Storage(f"{container('moto', control.endpoint)}/weak")
    control.faults(unconditional=1.0)
    assert not storage.check()


def test_unconditional_storage_does_not_overwrite(container, faulty):
    control = faulty("moto")
    storage = Storage(f"{container('moto', control.endpoint)}/weak", conditional=False)
    control.faults(unconditional=1.0)
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert storage.create("a", b"first")
    assert storage.read("a") == b"first"


def test_multipart_uploads_of_other_programs_are_not_stale(container):
    import boto3

    address = container("moto")
    bucket = address.removeprefix("s3://")
    client = boto3.client("s3")
    storage = Storage(f"{address}/out")
    storage.create("data/whole", b"x" * (12 << 20))  # larger than what clients cut by themselves
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    client.create_multipart_upload(Bucket=bucket, Key="out/data/part")
    assert list(find_stale_uploads(storage, OBJECT_NAMES)) == []


@pytest.fixture
def staged(tmp_path) -> Path:
    """A staged file of an interrupted upload, in an output of one object."""
    Storage(str(tmp_path)).create("_varve/part", b"x")
    (tmp_path / "_varve/part#1").write_bytes(b"half")
    return tmp_path / "_varve/part#1"


def test_staged_file_is_found_and_removed_once(staged):
    (found,) = find_stale_uploads(Storage(str(staged.parents[1])), OBJECT_NAMES)
    assert (found.name, found.size) == ("_varve/part#1", 4)
    found.remove()
    found.remove()  # already removed
    assert [path.name for path in staged.parent.iterdir()] == ["part"]


def test_staged_file_that_cannot_be_removed_is_named(staged):
    (found,) = find_stale_uploads(Storage(str(staged.parents[1])), OBJECT_NAMES)
    staged.unlink()
    staged.mkdir()
    with pytest.raises(RunError, match=r"part#1: cannot be removed"):
        found.remove()
