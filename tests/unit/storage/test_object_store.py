"""Addresses of outputs: file URIs are decoded, and paths where no folder can be are refused."""

import os

import pytest

from varve.config.output import Output
from varve.errors import JobError
from varve.output.object_names import OBJECT_NAMES
from varve.storage.object_store import Storage
from varve.storage.stale_uploads import find_stale_uploads


@pytest.mark.parametrize("start", ["file://", "file://localhost", "file:"])
def test_file_uri_is_decoded(tmp_path, start):
    uri = f"{start}{tmp_path}/uri%20x/%C3%BC%2520#?[x]"
    for storage in (Storage(uri), Storage(Output(path=uri).path)):
        assert storage.uri == f"{tmp_path}/uri x/ü%20#?[x]"
        assert storage.create("data/a", b"a") or storage is None
        assert [each.name for each in storage.list("data")] == ["data/a"]
    assert (tmp_path / "uri x/ü%20#?[x]/data/a").read_bytes() == b"a"


def test_path_is_not_decoded(tmp_path):
    for path in (f"{tmp_path}/uri%20x", "s3://bucket/uri%20x"):
        assert Output(path=path).path == Storage(path).uri == path


@pytest.fixture
def places(tmp_path):
    """A folder with paths that no folder can be created at."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


ODD_PATHS = [
    ("a", "a cannot be opened: Too many levels of symbolic links"),
    ("a/x", "a/x cannot be opened: Too many levels of symbolic links"),
    ("file", "file is a file"),
    ("file/x/y", "file is a file"),
    ("pipe/x", "pipe is a file"),
    ("x" * 300, "x cannot be opened: File name too long"),
    ("a\0b", "b cannot be opened: embedded null byte"),
]


@pytest.mark.parametrize(("path", "problem"), ODD_PATHS)
def test_path_that_no_folder_can_be_created_at_is_refused(places, path, problem):
    storage = Storage(str(places / path))
    requests = (
        lambda: storage.read("_varve/job.json"),
        lambda: list(storage.list("data")),
        storage.check,
        lambda: storage.create("data/a", b"a"),
        lambda: list(find_stale_uploads(storage, OBJECT_NAMES)) or storage.read("x"),
    )
    for request in requests:
        with pytest.raises(
            JobError, match=rf"output\.path: \S+{problem}; expected a folder, or a path where one can be"
        ):
            request()
