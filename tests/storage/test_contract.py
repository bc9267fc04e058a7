"""The contract of every store: memory, a local folder, Ceph's S3 gateway, Azurite, and simulators of GCS and S3."""

import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from varve.errors import JobError, RunError
from varve.storage.object_store import ObjectTooLargeError, Storage


@pytest.fixture(params=["memory", "local", "file", "radosgw", "azurite", "gcs", "moto"])
def storage(request, tmp_path, container):
    match request.param:
        case "memory":
            return Storage(f"memory://{time.monotonic_ns()}")
        case "local":
            return Storage(str(tmp_path / "out put"))
        case "file":
            return Storage(f"file://{tmp_path}/out put")
        case server:
            return Storage(f"{container(server)}/some/prefix")


def test_created_object_is_read_back_whole_and_in_part(storage):
    assert storage.create("data/a.bin", b"0123456789")
    assert storage.read("data/a.bin") == b"0123456789"
    assert storage.read("data/a.bin", 2, 5) == b"234"
    assert storage.read_at_most("data/a.bin", 10) == b"0123456789"
    with pytest.raises(ObjectTooLargeError):
        storage.read_at_most("data/a.bin", 9)


def test_missing_object_reads_as_none(storage):
    assert storage.read("nothing") is None
    assert storage.read_at_most("nothing", 10) is None
    assert list(storage.list("data")) == []


def test_object_is_never_overwritten(storage):
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert storage.create("a", b"first")  # the same content again is not a conflict
    assert storage.read("a") == b"first"


def test_empty_object_is_an_object(storage):
    assert storage.create("empty", b"")
    assert storage.read("empty") == b""
    assert storage.read_at_most("empty", 0) == b""
    assert not storage.create("empty", b"x")


def test_one_of_many_writers_wins(storage):
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda number: storage.create("race", b"%d" % number * 1000), range(8)))
    assert sum(won) == 1


def test_listing_has_names_and_sizes_below_the_prefix(storage):
    for number in range(3):
        storage.create(f"data/{number}", b"x" * number)
    storage.create("data2/other", b"x")
    assert sorted(found[:2] for found in storage.list("data")) == [("data/0", 0), ("data/1", 1), ("data/2", 2)]


def test_folders_are_those_directly_below_the_prefix(storage):
    assert list(storage.folders("sets")) == []
    for name in ("sets/one/data/x", "sets/one/_varve/y", "sets/two/z", "sets/file", "sets2/other/x"):
        storage.create(name, b"x")
    assert list(storage.folders("sets")) == ["one", "two"]


def test_listing_over_many_pages_and_in_parallel_has_each_object_once(storage):
    names = [f"data/part-{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda name: storage.create(name, b"x"), names))
    assert sorted(found.name for found in storage.list("data")) == names
    splits = ["data/part-00000", "data/part-00300", "data/part-00301", "data/part-1", "data/part-2"]
    assert sorted(found.name for found in storage.list("data", splits)) == names


def test_file_of_several_requests_is_uploaded_and_downloaded(storage, tmp_path):
    content = bytes(range(256)) * 100_000
    (tmp_path / "file").write_bytes(content)
    storage.upload("data/large.bin", tmp_path / "file")
    assert storage.read("data/large.bin", 25_599_990, 25_600_000) == content[-10:]
    assert storage.download("data/large.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_blocks_are_written_as_one_object(storage, tmp_path):
    blocks = [bytes([number]) * 3_000_000 for number in range(8)]
    storage.write("data/blocks.bin", 24_000_000, lambda: map(memoryview, blocks))
    assert [found[:2] for found in storage.list("data")] == [("data/blocks.bin", 24_000_000)]
    assert storage.download("data/blocks.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"".join(blocks)


def test_blocks_that_fail_leave_no_object(storage):
    def blocks():
        yield b"x" * 20_000_000
        msg = "a part is missing"
        raise RunError(msg)

    with pytest.raises(RunError, match="a part is missing"):
        storage.write("data/blocks.bin", 40_000_000, blocks)
    assert storage.read("data/blocks.bin") is None
    assert list(storage.list("data")) == []


def test_upload_replaces_an_object(storage, tmp_path):
    assert storage.create("a", b"first")
    (tmp_path / "file").write_bytes(b"second")
    storage.upload("a", tmp_path / "file")
    assert storage.read("a") == b"second"
    storage.write("a", 5, lambda: [b"third"])
    assert storage.read("a") == b"third"
    storage.write("empty", 0, list)
    assert storage.read("empty") == b""


def test_missing_object_is_not_downloaded(storage, tmp_path):
    assert not storage.download("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    storage.create("a", b"x")
    assert not storage.download("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_deleted_objects_are_gone_and_may_be_deleted_again(storage):
    storage.delete(["nothing"])  # in an output that does not exist
    for name in ("data/a", "data/b", "other/c"):
        storage.create(name, b"x")
    storage.delete(["data/a", "data/b"])
    assert [found.name for found in storage.list("data")] == []
    assert storage.read("data/a") is None
    storage.delete(["data/a", "data/nothing"])
    assert storage.read("other/c") == b"x"
    assert storage.create("data/a", b"y")


def test_uploads_of_many_requests_survive_faults(container, faulty, servers, monkeypatch, tmp_path):
    address = container("radosgw")
    control = faulty("radosgw")
    monkeypatch.setenv("AWS_ENDPOINT_URL", control.endpoint)
    content = random.Random(0).randbytes(60_000_000)
    (tmp_path / "file").write_bytes(content)
    storage = Storage(f"{address}/large")
    control.faults(slow_down=0.15, reset=0.08, lost=0.1, seed=7)
    storage.upload("file", tmp_path / "file")
    storage.write("blocks", len(content), lambda: (content[at : at + 999_999] for at in range(0, 60_000_000, 999_999)))
    for name in ("file", "blocks"):
        assert storage.download(name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    counts = control.counts()
    assert min(counts[fault] for fault in ("slow_down", "reset", "lost")) > 0
    storage.delete(["file", "blocks"])
    control.faults()
    assert list(storage.list("")) == []


def test_create_if_absent_is_detected(storage):
    assert storage.check()
    assert storage.check()  # and again on the output of an earlier run


@pytest.mark.parametrize("server", ["radosgw", "azurite", "gcs", "moto"])
def test_url_characters_have_no_meaning_in_a_prefix(container, server):
    address = container(server)
    names = ["run", "run#1", "run#2", "run?x=1", "run%41", "runA", "100%", "some run", "naïve", "a+b&c=d"]
    for name in names:
        assert Storage(f"{address}/{name}").create("a", name.encode())
    assert sorted(found.name for found in Storage(address).list("")) == sorted(f"{name}/a" for name in names)
    for name in names:
        storage = Storage(f"{address}/{name}")
        assert storage.read("a") == name.encode()
        assert [found.name for found in storage.list("")] == ["a"]


def test_url_character_in_a_bucket_name_is_kept(container):
    address = container("moto")
    Storage(address).create("a", b"x")
    with pytest.raises((JobError, RunError), match=f"{address}#1"):
        Storage(f"{address}#1", patient=False).read("a")


def test_pickle_and_repr_hold_only_the_address(storage):
    storage.create("a", b"x")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert b"SKTEST" not in pickle.dumps(storage)
    assert "SKTEST" not in repr(storage)


def test_unknown_scheme_is_refused():
    with pytest.raises(JobError, match="floppy://x"):
        Storage("floppy://x").create("a", b"x")


def test_folder_that_cannot_be_created_is_named():
    with pytest.raises(RunError, match="/proc/varve"):  # where not even root can create folders
        Storage("/proc/varve/out").create("a", b"x")


@pytest.mark.parametrize("below", ["", "/out"])
def test_path_at_or_below_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(JobError, match=f"{tmp_path}/file is a file"):
        Storage(f"{tmp_path}/file{below}").create("a", b"x")
