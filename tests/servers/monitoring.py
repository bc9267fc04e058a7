"""A Prometheus, and a Ray head that it scrapes, on free ports of the loopback interface."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.servers.processes import answers, end, free_port, free_ports, start
from tests.waiting import wait_until

MONITORING = Path(__file__).parents[2] / "infra/monitoring"
_UNPACKED = Path(__file__).parent / "unpacked/usr/bin"


def tool(name: str) -> str | None:
    """Path of prometheus or promtool; None if `make servers` has not installed it."""
    return shutil.which(name) or shutil.which(name, path=_UNPACKED)


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    endpoint: str

    def ask(self, path: str, **parameters: object) -> dict | list:
        """The answer of its API.

        Raises:
            HTTPError: the request is rejected, for instance an invalid query.
        """
        with urllib.request.urlopen(f"{self.endpoint}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """The present value of a query for one number; None without data."""
        series = self.ask("query", query=query)["result"]
        return float(series[0]["value"][1]) if series else None

    def over(self, query: str, since: float, until: float, step_s: float = 1) -> list[dict]:
        """The series of a query over a time range."""
        return self.ask("query_range", query=query, start=since, end=until, step=step_s)["result"]


@contextmanager
def prometheus(folder: Path, targets: Path) -> Iterator[Prometheus]:
    """A server with the configuration of infra/monitoring, but an interval of 1 s, and the targets of Ray's file."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    for scrape in config["scrape_configs"]:
        scrape["file_sd_configs"] = [{"files": [str(targets)], "refresh_interval": "1s"}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log, port = folder / "prometheus.log", free_port()
    command = [
        str(tool("prometheus")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = start(command, log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"), "Prometheus", log)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        end([process])


@dataclass(frozen=True)
class RayHead:
    """A running Ray head."""

    environment: dict[str, str]  # of a driver that joins it
    targets: Path  # the file that lists what to scrape
    pid: int

    def workers(self, title: str) -> list[int]:
        """Ids of its worker processes whose titles contain a word."""
        lines = subprocess.run(
            ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        rows = [line.split(maxsplit=2) for line in lines]
        parents = {int(row[0]): int(row[1]) for row in rows}

        def is_ours(pid: int) -> bool:
            while pid in parents and pid != self.pid:
                pid = parents[pid]
            return pid == self.pid

        return [int(row[0]) for row in rows if row[2].startswith("ray::") and title in row[2] and is_ours(int(row[0]))]


@contextmanager
def ray_head(cpus: int) -> Iterator[RayHead]:
    """A head as an operator starts it, which reports metrics every second."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the path of a socket must be short
    (port, dashboard), log = free_ports(2), folder / "head.log"
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}", f"--dashboard-port={dashboard}",
    ]  # fmt: skip
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    fast_metrics = {"RAY_metrics_report_interval_ms": "1000", "RAY_USAGE_STATS_ENABLED": "0"}
    process = start(command, log, env={**os.environ, **token, **fast_metrics})
    targets = folder / "session_latest/prom_metrics_service_discovery.json"
    try:
        wait_until(targets.exists, "Ray", log)
        yield RayHead({**os.environ, **token, "RAY_ADDRESS": f"127.0.0.1:{port}"}, targets, process.pid)
    finally:
        end([process])
        shutil.rmtree(folder, ignore_errors=True)
