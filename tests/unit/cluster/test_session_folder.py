"""The folder of a local Ray is private, and those of runs that were killed are removed."""

import subprocess
import sys

import pytest

from varve.cluster.session_folder import make_session_folder, temporary_folder

HOLD = """
from varve.cluster.session_folder import make_session_folder
print(make_session_folder().path, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def other():
    """Another process that has made a folder and lives."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_folder_is_private_and_gone_after_its_removal(parent):
    folder = make_session_folder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "session/logs").mkdir(parents=True)
    folder.remove()
    assert list(parent.iterdir()) == []


def test_folder_of_a_live_run_is_kept_and_removed_after_its_death(parent, other):
    (held,) = parent.iterdir()
    first = make_session_folder()
    assert held.exists()
    other.kill()
    other.wait()
    second = make_session_folder()
    assert set(parent.iterdir()) == {first.path, second.path}
    first.remove()
    second.remove()


def test_temporary_folder_with_a_long_path_is_not_used_for_sockets(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    assert str(temporary_folder()) == "/tmp/short"
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    assert str(temporary_folder()) == "/tmp"


def test_folders_that_no_run_has_made_are_kept(parent):
    for name in ("varve-models", "varve-data"):
        (parent / name).mkdir()
    (parent / "varve-data/lock").touch()
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (parent / "varve-00000f").symlink_to(elsewhere)
    make_session_folder().remove()
    assert {path.name for path in parent.iterdir()} == {"varve-models", "varve-data", "varve-00000f", "elsewhere"}
    assert (parent / "varve-data/lock").exists()
    assert (elsewhere / "lock").exists()


def test_session_that_a_process_made_after_the_end_of_its_run_is_removed(parent):
    (parent / "varve-00000a/r/session_2026-01-01/logs").mkdir(parents=True)
    (parent / "varve-00000b").mkdir()  # of a run that is about to make its lock
    (parent / "varve-00000c/r/data").mkdir(parents=True)
    make_session_folder().remove()
    assert {path.name for path in parent.iterdir()} == {"varve-00000b", "varve-00000c"}
