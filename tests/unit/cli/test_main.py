import os
import subprocess
import sys
from pathlib import Path

import pytest

from varve.cli.main import run_command

FULL = Path("/dev/full")
VARVE = [sys.executable, "-m", "varve"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["embed", "--help"], 0), (["embed", "/not/there.yaml"], 2), (["no"], 2)],
)
def test_process_exits_with_the_code_of_its_command(arguments, code):
    ended = subprocess.run([*VARVE, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert (ended.stderr if code else ended.stdout).strip()


@pytest.mark.parametrize(
    "arguments",
    [["verify", ""], ["status", ""], ["clean", " ", "--delete"], ["demo", "--output", ""]],
    ids=lambda given: given[0],
)
def test_empty_path_does_not_mean_the_current_folder(arguments, capsys):
    assert run_command(arguments) == 2
    assert "is empty: expected a folder" in capsys.readouterr().err


def test_command_leaves_the_environment_as_it_was(tmp_path):
    before = dict(os.environ)
    assert run_command(["status", str(tmp_path)]) == 1
    assert dict(os.environ) == before


def test_exit_handlers_run_before_the_process_exits():
    then = "m.run_command = lambda: atexit.register(print, 'the end') and 3"
    code = f"import atexit, varve.cli.main as m\n{then}\nm.main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("the end\n", 3)


def test_process_without_a_reader_exits_silently():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*VARVE, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", 1)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
def test_process_that_cannot_write_its_result_fails():
    with FULL.open("w") as full:
        ended = subprocess.run([*VARVE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
