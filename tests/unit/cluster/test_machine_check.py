"""Faults of the machine are named before Ray starts, each with what to set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from varve.cluster.machine_check import check_machine
from varve.cluster.prepared_ray import PreparedRay
from varve.config.compute import Compute
from varve.errors import RunError

NOT_WRITABLE = Path("/proc")  # not even for root


def problems(folder: Path, **options) -> str:
    with pytest.raises(RunError) as error:
        check_machine(folder, 2, **options)
    return str(error.value)


def test_check_of_this_machine_passes_and_makes_no_folder():
    folder = Path("/tmp/absent")
    check_machine(folder, 2)
    assert not folder.exists()


def test_local_ray_is_not_started_on_a_machine_that_fails_the_check(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(NOT_WRITABLE))
    with pytest.raises(RunError, match="Ray cannot start on this machine:\n  RAY_TMPDIR=/proc cannot be written"):
        PreparedRay.prepare(Compute(object_store_bytes=10**15))


def test_check_of_a_folder_with_a_long_path_names_the_bound_and_the_variable(monkeypatch):
    room = 107 - len(f"/varve-000000/r/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    longest = Path("/tmp") / ("x" * (room - len("/tmp/")))
    check_machine(longest, 2)
    too_long = Path(f"{longest}x")
    monkeypatch.setenv("RAY_TMPDIR", str(too_long))
    message = problems(too_long)
    assert f"RAY_TMPDIR={too_long}: the path is too long" in message
    assert f"({room + 1} bytes, at most {room}). Set RAY_TMPDIR" in message


def test_check_counts_the_bytes_of_a_path_not_its_characters():
    assert "bytes" in problems(Path("/tmp") / ("ü" * 20))


@pytest.mark.parametrize("name", ["proc", "file"])
def test_check_of_a_folder_that_is_not_writable_names_it_and_the_variable(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    folder = NOT_WRITABLE if name == "proc" else tmp_path / "file" / "folder"
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert f"RAY_TMPDIR={folder} cannot be written" in problems(folder)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_check_of_shared_memory_that_is_not_writable_names_the_mount(name, tmp_path):
    (tmp_path / "file").touch()
    message = problems(Path("/tmp"), shared_memory=tmp_path / name)
    assert f"{tmp_path / name} cannot be written" in message
    assert "--shm-size" in message


def test_check_of_an_object_store_beyond_shared_memory_names_the_key():
    assert "compute.object_store_bytes: 1,000,000,000,000,000 is more" in problems(
        Path("/tmp"), object_store_bytes=10**15
    )


def test_check_names_all_problems_at_once(tmp_path):
    message = problems(NOT_WRITABLE, shared_memory=tmp_path / "absent", object_store_bytes=10**15)
    assert len(message.splitlines()) == 3


def limited(limit: str, size: int) -> str:
    """The message of the check in a process with this limit of the system."""
    code = (
        f"import resource; resource.setrlimit(resource.{limit}, ({size}, {size}))\n"
        "from pathlib import Path\nfrom varve.cluster.machine_check import check_machine\n"
        "from varve.errors import RunError\n"
        "try: check_machine(Path('/tmp'), 2)\nexcept RunError as e: print(e)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_check_with_few_open_files_allowed_names_the_limit():
    assert "may open 64 files (`ulimit -Hn`); Ray with 2 CPUs needs 108" in limited("RLIMIT_NOFILE", 64)
    assert limited("RLIMIT_NOFILE", 108) == ""


def test_check_of_a_folder_without_room_names_the_space():
    assert "Set RAY_TMPDIR to a writable folder with 16 MB" in limited("RLIMIT_FSIZE", 1 << 20)
