"""Workers of a local Ray: forked with all that Ray gives them, or started cold."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until
from varve.cluster import worker_launcher
from varve.cluster.prepared_ray import Imports, PreparedRay
from varve.config.compute import Compute

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux only")
IMPORTED = "xml.dom.minidom"  # a module that no other import brings
WORKER = f"""
import json, os, signal, sys
print(json.dumps({{
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "folder": os.getcwd(),
    "arguments": sys.argv[1:],
    "niceness": os.nice(0), "is_warm": {IMPORTED!r} in sys.modules, "value": os.environ.get("RAY_VALUE"),
    "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "main": __name__, "foreign": "EDITOR" in os.environ,
}}), flush=True)
if "wait" in sys.argv:
    signal.pause()
if "exit handler" in sys.argv:
    import ctypes
    of_c = ctypes.CDLL(None)
    of_c.__cxa_atexit(of_c.pause, None, None)
"""


def environment(value: str = "1") -> dict[str, str]:
    return {name: os.environ[name] for name in (worker_launcher.SOCKET, "PATH")} | {"RAY_VALUE": value}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("EDITOR", "of the driver")
    prepared = PreparedRay.prepare(Compute(), Imports((IMPORTED,), ()))
    try:
        with prepared.starts_workers():
            yield prepared
    finally:
        prepared.end()


@pytest.fixture
def start(prepared, tmp_path):
    """Run a worker as Ray does; returns what it saw."""
    (tmp_path / "worker.py").write_text(WORKER)

    def run(*arguments: str, value: str = "1", niceness: int = 0) -> dict:
        argv = ["nice", "-n", str(niceness), sys.executable, worker_launcher.__file__, str(tmp_path / "worker.py")]
        with subprocess.Popen(
            [*argv, *arguments], env=environment(value), cwd=tmp_path, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            return json.loads(process.stdout.readline())

    return run


def test_forked_worker_has_what_ray_gave_its_launcher(prepared, start, tmp_path):
    seen = start("--node=1", "--language=PYTHON", "--serialized-runtime-env-context={}", niceness=3)
    assert seen["is_warm"]
    assert seen["parent"] == prepared.fork_server.pid
    assert seen["arguments"] == ["--node=1"]
    assert Path(seen["folder"]) == tmp_path
    assert (seen["niceness"], seen["value"], seen["foreign"]) == (os.nice(0) + 3, "1", False)
    assert (seen["main"], seen["children"]) == ("__main__", True)


def test_worker_of_another_job_starts_cold_because_ray_keeps_its_first_environment(start):
    assert start(value="1")["is_warm"]
    assert not start(value="2")["is_warm"]
    assert start(value="1")["is_warm"]


def test_launcher_that_ray_has_ended_gets_no_worker(prepared, start, tmp_path):
    start()  # the imports are done
    os.kill(prepared.fork_server.pid, signal.SIGSTOP)
    (tmp_path / "late.py").write_text(f"open({str(tmp_path / 'late')!r}, 'w')")
    argv = [sys.executable, worker_launcher.__file__, str(tmp_path / "late.py")]
    launcher = subprocess.Popen(argv, env=environment())
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the answer
        launcher.wait(2)
    launcher.kill()
    launcher.wait()
    os.kill(prepared.fork_server.pid, signal.SIGCONT)
    start()
    assert not (tmp_path / "late").exists()


def test_worker_starts_cold_without_a_server(prepared, start):
    prepared.fork_server.kill()
    prepared.fork_server.wait()
    seen = start("--node=1", "--language=PYTHON")
    assert (seen["is_warm"], seen["arguments"]) == (False, ["--node=1"])


def test_death_of_a_worker_with_its_process_group_leaves_the_server_alive(prepared, start):
    killed = start("wait")
    os.killpg(killed["group"], 9)  # as Ray does
    assert killed["group"] == killed["pid"]
    assert start()["parent"] == prepared.fork_server.pid


def test_worker_ends_although_the_exit_handler_of_a_library_never_returns(prepared, start):
    ended = start("exit handler")
    assert ended["parent"] == prepared.fork_server.pid
    wait_until(lambda: not Path(f"/proc/{ended['pid']}").exists(), "the end of the worker", timeout_s=20)


def test_server_ends_with_the_process_that_started_it(prepared):
    prepared.wait()
    prepared.fork_server.stdin.close()
    assert prepared.fork_server.wait(20) == 0
