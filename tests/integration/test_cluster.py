"""A Ray that has other work to do."""

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
from tests.waiting import PATIENCE_S
from varve.cluster.connection import start_ray
from varve.cluster.placement import place_on_cluster
from varve.config.compute import Compute
from varve.errors import RunError


@contextmanager
def held(cpus: float):
    """CPUs that something else has taken for good."""
    start_ray(Compute())

    class Holder:
        def is_there(self) -> bool:
            return True

    holder = ray.remote(num_cpus=cpus)(Holder).remote()
    assert ray.get(holder.is_there.remote())
    yield
    ray.kill(holder)


def test_run_beside_other_work_takes_what_is_free(job, run, tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": ["a text", "another"] * 20}), tmp_path / "docs/0.parquet")
    start_ray(Compute())
    all_cpus = ray.cluster_resources()["CPU"]
    with held(all_cpus - 1):
        assert run(job(tmp_path / "docs")).num_rows == 40


def test_run_that_finds_no_cpu_says_what_it_lacks():
    start_ray(Compute())
    all_cpus = ray.cluster_resources()["CPU"]
    with held(all_cpus), pytest.raises(RunError, match=rf"Ray has 0\.0 of {all_cpus:.0f}: something else holds them"):
        place_on_cluster(Compute(), wait_s=0)


def test_starting_ray_leaves_the_handler_of_sigterm_as_it_was():
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "from varve.cluster.connection import start_ray; from varve.config.compute import Compute\n"
        "start_ray(Compute())\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_ray_of_our_own_has_no_reader_of_logs_that_nobody_shows():
    start_ray(Compute())
    titles = descendants().values()
    assert any(b"raylet" in title for title in titles)
    assert not any(b"log_monitor" in title for title in titles)


def test_ray_that_does_not_come_up_is_told_in_one_message(monkeypatch):
    """Only Ray's start has a stand-in: on a machine as busy as that it raises a bare Exception."""

    def init(**_):
        msg = "The current node timed out during startup."
        raise Exception(msg)  # noqa: TRY002 (Ray's)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match="this machine: The current node timed out during startup"):
        start_ray(Compute())


def test_ray_that_comes_up_too_late_on_a_busy_machine_is_started_again(monkeypatch):
    late = ["The current node timed out during startup."]

    def init(**_):
        if late:
            raise Exception(late.pop())  # noqa: TRY002 (Ray's)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    start_ray(Compute())


def test_command_of_a_program_that_has_ray_already_leaves_it_able_to_start(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a-token-of-the-tests-0123456789")
    code = (
        "import ray; from varve.cli.main import run_command; run_command(['status', 'nothing-there'])\n"
        "from varve.cluster.connection import start_ray; from varve.config.compute import Compute\n"
        "start_ray(Compute())"
    )
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    subprocess.run([sys.executable, "-c", code], env=known | {"HOME": str(tmp_path)}, check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_token_in_the_home_folder_is_used_only_where_the_cluster_asks_for_one(mode):
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
        known = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
        known["RAY_ADDRESS"] = head.ray_address
        told = subprocess.check_output([sys.executable, "-c", code], env=known, text=True, timeout=PATIENCE_S)
    assert told.strip() == mode
