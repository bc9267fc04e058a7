"""The connection to Ray: a cluster with other work, a local Ray, tokens of a cluster."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.servers.cluster import TOKEN, ray_head
from tests.servers.processes import descendants
from tests.waiting import PATIENCE_S, RUN_S, wait_until
from varve.cluster.connection import start_ray
from varve.cluster.placement import place_on_cluster
from varve.config.compute import Compute
from varve.errors import RunError


@contextmanager
def occupied(cpus: float):
    """CPUs that another program holds, and that Ray's head counts as held: nodes report to it from time to time."""
    start_ray(Compute())
    free_cpus = ray.cluster_resources()["CPU"] - cpus

    class Holder:
        def has_started(self) -> bool:
            return True

    holder = ray.remote(num_cpus=cpus)(Holder).remote()
    assert ray.get(holder.has_started.remote())
    wait_until(lambda: ray.available_resources().get("CPU", 0.0) <= free_cpus, f"the head counts {cpus} CPUs as held")
    yield
    ray.kill(holder)


def test_run_on_a_shared_cluster_uses_the_free_cpu(job, run, tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": ["a text", "another"] * 20}), tmp_path / "docs/0.parquet")
    start_ray(Compute())
    all_cpus = ray.cluster_resources()["CPU"]
    with occupied(all_cpus - 1):
        assert run(job(tmp_path / "docs")).num_rows == 40


def test_run_without_a_free_cpu_reports_free_and_total_cpus():
    start_ray(Compute())
    all_cpus = ray.cluster_resources()["CPU"]
    with occupied(all_cpus), pytest.raises(RunError, match=rf"CPUs.* 0\.0 of {all_cpus:.0f}\b"):
        place_on_cluster(Compute(), wait_s=0)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """What a program reports that imports Ray, runs a command and starts a local Ray; its home folder has a token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text(TOKEN)
    code = (
        "import json, ray, signal; from varve.cli.main import run_command; run_command(['status', 'nothing-there'])\n"
        "from varve.cluster.connection import start_ray; from varve.config.compute import Compute\n"
        "def handler(*_): pass\n"
        "signal.signal(signal.SIGTERM, handler); start_ray(Compute())\n"
        "is_kept = signal.getsignal(signal.SIGTERM) is handler\n"
        "print(json.dumps({'has_ray': ray.is_initialized(), 'handler_is_kept': is_kept}))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(home)
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=RUN_S)
    return json.loads(output.splitlines()[-1])


def test_starting_ray_keeps_the_handler_of_sigterm(program):
    assert program["handler_is_kept"]


def test_command_in_a_program_that_has_imported_ray_lets_it_start(program):
    assert program["has_ray"]


def test_local_ray_has_no_log_monitor():
    start_ray(Compute())
    titles = descendants().values()
    assert any(b"raylet" in title for title in titles)
    assert not any(b"log_monitor" in title for title in titles)


def test_local_ray_of_many_tasks_needs_no_more_memory_for_its_head():
    class Idle:
        def answer(self) -> None:
            pass

    start_ray(Compute())
    head = next(pid for pid, title in descendants().items() if title.partition(b"\0")[0].endswith(b"/gcs_server"))
    actor = ray.remote(num_cpus=0)(Idle).remote()
    before_bytes = anonymous_bytes(head)
    for _ in range(5):
        ray.get([actor.answer.remote() for _ in range(1_000)])
    assert anonymous_bytes(head) - before_bytes < 5_000_000


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def test_ray_that_does_not_start_is_reported_with_its_message(monkeypatch):
    """Only `ray.init` is replaced: on a busy machine it raises a bare Exception."""

    def init(**_):
        msg = "The current node timed out during startup."
        raise Exception(msg)  # noqa: TRY002 (Ray's)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"this machine.*The current node timed out during startup"):
        start_ray(Compute())


def test_ray_that_starts_too_late_is_started_again(monkeypatch):
    errors, real_init = ["The current node timed out during startup."], ray.init

    def init(**options):
        if errors:
            raise Exception(errors.pop())  # noqa: TRY002 (Ray's)
        return real_init(**options)

    ray.shutdown()
    monkeypatch.setattr(ray, "init", init)
    start_ray(Compute())
    assert not errors
    assert ray.is_initialized()


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_token_of_the_home_folder_is_used_if_the_cluster_wants_one(mode):
    code = (
        "import os; from varve.cluster.auth_token import use_token; use_token(os.environ['RAY_ADDRESS'])\n"
        "import ray; ray.init(log_to_driver=False)\n"
        "class Actor:\n    def answer(self): return os.environ['RAY_AUTH_MODE']\n"
        f"print(ray.get(ray.remote(Actor).remote().answer.remote(), timeout={PATIENCE_S}))"
    )
    with ray_head(RAY_AUTH_MODE=mode) as head:
        folder = Path(head.environment["HOME"], ".ray")
        folder.mkdir()
        (folder / "auth_token").write_text(TOKEN)
        environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
        environment["RAY_ADDRESS"] = head.ray_address
        mode_of_worker = subprocess.check_output(
            [sys.executable, "-c", code], env=environment, text=True, timeout=RUN_S
        )
    assert mode_of_worker.strip() == mode
