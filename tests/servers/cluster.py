"""A Ray head in its own processes, started from the command line: with a dashboard and token authentication."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import answers, end, free_ports, ray_folder, start
from tests.waiting import wait_until

TOKEN = "a-token-of-the-tests-0123456789"


@dataclass(frozen=True)
class RayHead:
    address: str
    environment: dict[str, str]  # of a client: the token and little more
    ray_address: str


@contextmanager
def ray_head(**environment: str) -> Iterator[RayHead]:
    """A head on loopback with two CPUs, whose jobs use this Python; `environment` is added to its variables."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with ray_folder() as folder:
        head_environment = {"HOME": folder, "PATH": path, "HF_HUB_OFFLINE": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        head_environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += ["--disable-usage-stats", f"--temp-dir={folder}/ray", "--include-dashboard=true"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        log = Path(folder, "head.log")
        head = start(command, log, env=head_environment | environment)
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        try:
            wait_until(lambda: answers(f"{address}/api/version"), "Ray's head", log)
            client = {"HOME": folder, "PATH": path, "RAY_AUTH_TOKEN": TOKEN}
            yield RayHead(address, client, f"127.0.0.1:{ports['port']}")
        finally:
            end([head])
