"""The Ray that a command starts: private, on the loopback interface, and gone with the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from tests.servers.processes import descendants, listening_addresses, ray_folder
from tests.waiting import PATIENCE_S, RUN_S, wait_until

# 127.0.0.1, also as an IPv6 address, as /proc writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
BROKEN = """
import sys
if any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    raise SystemExit("no worker can start here")
"""
IMPATIENT = """
from varve.cluster.local_ray import start_local_ray
from varve.cluster.prepared_ray import PreparedRay
from varve.config.compute import Compute
start_local_ray(PreparedRay.prepare(Compute()), worker_start_s=15)()
"""

DYING = """
import os, signal
from tests.servers.processes import descendants
from varve.cluster.local_ray import start_local_ray
from varve.cluster.prepared_ray import PreparedRay
from varve.config.compute import Compute
wait = start_local_ray(PreparedRay.prepare(Compute()))
[raylet] = [pid for pid, title in descendants().items() if title.partition(b"\\0")[0].endswith(b"raylet")]
os.kill(raylet, signal.SIGKILL)
wait()
"""


@dataclass
class Observed:
    """What was seen while a command ran, and what it left."""

    addresses: set[str] = field(default_factory=set)
    modes: set[int] = field(default_factory=set)  # of the folders of Ray
    num_processes: int = 0  # at the same time
    token_mode: int = 0
    left: Sequence[Path] = ()


@pytest.fixture(scope="module")
def docs(tmp_path_factory, write_shards):
    return write_shards(tmp_path_factory.mktemp("job") / "docs", [pa.table({"text": ["one text", "another"]})])


def command(docs: Path, model: str, output: str) -> list[str]:
    options = ["--dataset", str(docs), "--text", "text", "--model", model, "--output", str(docs.parent / output)]
    return [sys.executable, "-m", "varve", "embed", *options]


def environment(ray: str, **more) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_TMPDIR": ray,
        **more,
    }


@pytest.fixture(scope="module")
def observed(docs, minilm, tmp_path_factory):
    """A run that was watched from its start to its end."""
    home, seen = tmp_path_factory.mktemp("home"), Observed()
    with ray_folder() as ray:
        argv, running = command(docs, minilm, "observed"), environment(ray, HOME=str(home))
        process = subprocess.Popen(argv, env=running, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            pids = descendants(process.pid)
            seen.addresses |= listening_addresses(pids)
            with suppress(FileNotFoundError):  # removed meanwhile
                seen.modes |= {path.stat().st_mode & 0o777 for path in Path(ray).iterdir()}
            seen.num_processes = max(seen.num_processes, len(pids))
            time.sleep(0.2)
        assert process.returncode == 0, process.communicate()[1]
        seen.left = [*Path(ray).iterdir()]
    seen.token_mode = (home / ".ray/auth_token").stat().st_mode & 0o777
    return seen


def test_all_sockets_of_a_run_listen_on_the_loopback_interface(observed):
    assert observed.num_processes > 5
    assert observed.addresses == LOOPBACK


def test_token_and_sockets_are_of_this_user_only(observed):
    assert observed.token_mode == 0o600
    assert observed.modes == {0o700}


def test_run_leaves_no_folder_of_ray(observed):
    assert observed.left == []


@pytest.fixture
def broken(tmp_path):
    """PYTHONPATH with which no worker starts."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    return str(tmp_path)


def test_workers_that_cannot_start_are_reported_with_their_last_output(broken):
    with ray_folder() as ray:
        failed = subprocess.run(
            [sys.executable, "-c", IMPATIENT],
            env=environment(ray, PYTHONPATH=broken),
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert list(Path(ray).iterdir()) == []
    message = failed.stderr.partition("varve.errors.RunError: ")[2].splitlines()
    assert "none was ready within 15 s" in message[0]
    assert "PYTHONPATH" in message[0]
    assert message[-1].strip() == "SystemExit: no worker can start here"


def test_node_of_ray_that_dies_while_its_workers_start_is_reported(broken):
    with ray_folder() as ray:
        failed = subprocess.run(
            [sys.executable, "-c", DYING],
            env=environment(ray, PYTHONPATH=f"{broken}:{Path(__file__).parents[2]}"),
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert list(Path(ray).iterdir()) == []
    message = failed.stderr.partition("varve.errors.RunError: ")[2]
    assert "Run the same command again" in message, failed.stderr


def test_one_signal_ends_a_command_whose_workers_cannot_start(broken, docs, minilm):
    def has_failed() -> bool:
        return any("no worker can start" in log.read_text() for log in Path(ray).rglob("raylet.err"))

    with ray_folder() as ray:
        argv, running = command(docs, minilm, "broken"), environment(ray, PYTHONPATH=broken)
        process = subprocess.Popen(argv, env=running, stderr=subprocess.PIPE, text=True)
        wait_until(has_failed, "a worker that fails", alive=process)
        process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert process.wait(PATIENCE_S) == 1
        assert time.monotonic() - signalled_at < 20
        log = process.communicate(timeout=PATIENCE_S)[1]  # returns when all processes have closed the pipe
        assert list(Path(ray).iterdir()) == []
    assert log == "varve embed: stopped. Finished parts stay: the same command resumes\n"


def test_closed_terminal_while_ray_starts_ends_the_command(docs, minilm):
    with ray_folder() as ray:
        argv = command(docs, minilm, "closed")
        process = subprocess.Popen(argv, env=environment(ray), stderr=subprocess.PIPE, text=True)
        wait_until(lambda: list(Path(ray).rglob("sockets")), "a session of Ray", alive=process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 1
        log = process.communicate(timeout=PATIENCE_S)[1]
        assert list(Path(ray).iterdir()) == []
    assert log == "varve embed: stopped. Finished parts stay: the same command resumes\n"
