"""One contract, on a local folder and on an S3 server."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import JobError, RunError
from pipeline.storage import Storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return Storage(str(tmp_path / "out put"))
    return Storage(f"s3://{request.getfixturevalue('bucket')}/some/prefix")


def test_created_object_is_read_back_whole_and_in_part(storage):
    assert storage.create("data/a.bin", b"0123456789")
    assert storage.read("data/a.bin") == b"0123456789"
    assert storage.read("data/a.bin", 2, 5) == b"234"


def test_object_that_is_not_there_reads_as_none(storage):
    assert storage.read("nothing") is None
    assert list(storage.list("data")) == []


def test_object_is_never_overwritten(storage):
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert storage.create("a", b"first")  # the same content again is not a conflict
    assert storage.read("a") == b"first"


def test_of_many_writers_one_wins(storage):
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda number: storage.create("race", b"%d" % number * 1000), range(8)))
    assert sum(won) == 1


def test_listing_gives_names_and_sizes_below_a_prefix_only(storage):
    for number in range(3):
        storage.create(f"data/{number}", b"x" * number)
    storage.create("data2/other", b"x")
    assert sorted(storage.list("data")) == [("data/0", 0), ("data/1", 1), ("data/2", 2)]


def test_pickle_and_repr_hold_the_address_alone(storage):
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert b"SKTEST" not in pickle.dumps(storage)
    assert "SKTEST" not in repr(storage)


def test_missing_bucket_is_told_with_its_address(bucket):
    with pytest.raises(RunError, match="s3://no-such-bucket"):
        Storage("s3://no-such-bucket/x").create("a", b"x")


def test_address_of_no_store_is_refused():
    with pytest.raises(JobError, match="floppy://x"):
        Storage("floppy://x").create("a", b"x")


def test_folder_that_may_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="file/out"):
        Storage(str(tmp_path / "file" / "out")).create("a", b"x")
