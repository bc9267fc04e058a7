"""The case of a process that ended, and the reason of its end, are reported whatever ended it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.case import Case
from tests.fuzz.child_end import memory_kills, read_end, write_case
from tests.fuzz.executor import Executor
from tests.fuzz.target import Target
from tests.fuzz.watch import Watch

_CASE = Case("records", "out/_varve/job.json", b"{}")
_ENDS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "end of the process by SIGKILL, by another process",
    "ctypes.string_at(0)": "end of the process by SIGSEGV",
    "os.abort()": "end of the process by SIGABRT",
    "sys.exit(3)": "end of the process with exit code 3",
    "bytearray(2**62)": "end of the process with exit code 1, out of the memory that it was allowed",
    "faulthandler.dump_traceback_later(0.01, exit=True, file=stack); time.sleep(60)": "hang",
}


@pytest.mark.parametrize(("code", "reason"), _ENDS.items())
def test_end_of_a_process_is_reported_with_its_case_and_its_reason(code, reason, tmp_path):
    write_case(tmp_path / "current", Case("records", "out/data/long", b"x" * 1000))
    write_case(tmp_path / "current", _CASE)  # shorter than the one before
    start = "import ctypes, faulthandler, os, signal, sys, time; stack = open('stack', 'w'); faulthandler.enable(stack)"
    with (tmp_path / "log").open("w") as log:
        run = subprocess.run([sys.executable, "-c", f"{start}; {code}"], cwd=tmp_path, stderr=log, check=False)
    found = read_end(tmp_path, run.returncode, kills_before=memory_kills())
    assert found.case == _CASE
    assert found.reason == f"{reason} by {_CASE.file}"


def test_process_that_was_ended_by_the_campaign_counts_as_a_hang(tmp_path):
    write_case(tmp_path / "current", _CASE)
    assert read_end(tmp_path, None, kills_before=memory_kills()).reason.startswith("hang between two cases")


def test_process_that_the_kernel_ended_for_its_memory_is_told_apart(tmp_path):
    write_case(tmp_path / "current", _CASE)
    found = read_end(tmp_path, -signal.SIGKILL, kills_before=memory_kills() - 1)
    assert "by the kernel for its memory" in found.reason


def test_process_that_ended_before_its_first_case_is_an_error(tmp_path):
    (tmp_path / "log").write_text("no such file")
    with pytest.raises(RuntimeError, match=rf"before its first case: .* exit code {os.EX_USAGE}\nno such file"):
        read_end(tmp_path, os.EX_USAGE, kills_before=0)


def _make(folder: Path) -> None:
    (folder / "records").mkdir()
    (folder / "records/job.json").write_text("{}")


def test_files_that_a_dead_process_has_left_changed_are_whole_for_the_next_one(tmp_path):
    target = Target("records", _make, ("records/*.json",), lambda _folder, _name: None)
    dead = Executor(target, tmp_path, Watch(tmp_path))
    (dead.folder / "records/job.json").write_text("changed")
    (dead.folder / "records/new").mkdir()
    following = Executor(target, tmp_path, Watch(tmp_path))
    assert following.valid == {"records/job.json": b"{}"}
    assert sorted(path.name for path in dead.folder.rglob("*")) == ["job.json", "records"]
    assert (dead.folder / "records/job.json").read_text() == "{}"
