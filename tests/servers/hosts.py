"""Several hosts on one machine: network namespaces on a switch, each with its own address and Ray node.

Without namespaces (no root, no `ip`) the hosts share one address, and cutting one off kills its node.
"""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.cluster import TOKEN
from tests.servers.processes import answers, end, free_ports, ray_folder, start
from tests.waiting import wait_until

_NET = "10.231.77"
_PORT, _DASHBOARD = 6379, 8265
_numbers = itertools.count()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def namespaces_missing() -> str | None:
    """Why this machine cannot create network namespaces; None if it can."""
    if shutil.which("ip") is None:
        return "no `ip` command"
    name = f"check{os.getpid()}"
    created = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if created.returncode == 0:
        _ip("netns", "delete", name)
        return None
    return created.stderr.strip() or "ip netns add failed"


class Hosts:
    """A head and workers, each with one CPU."""

    def __init__(self, folder: Path, *, separate: bool) -> None:
        self.separate = separate
        self._folder = folder
        self._prefix = f"v{os.getpid() % 100000}n{next(_numbers)}"
        self._nodes: dict[int, subprocess.Popen] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._port, self._dashboard = (_PORT, _DASHBOARD) if separate else free_ports(2)
        self.environment = {
            "HOME": str(folder),
            "PATH": path,
            "HF_HUB_OFFLINE": "1",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            # Ray counts a host that is cut off as dead after 20 s instead of a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "4",
        }

    @property
    def address(self) -> str:
        return f"http://{self._address(0)}:{self._dashboard}"

    @property
    def ray_address(self) -> str:
        return f"{self._address(0)}:{self._port}"

    def _address(self, host: int) -> str:
        return f"{_NET}.{host + 1}" if self.separate else "127.0.0.1"

    def on(self, host: int, command: list[str]) -> list[str]:
        """The command line that runs a command on a host."""
        return ["ip", "netns", "exec", f"{self._prefix}h{host}", *command] if self.separate else command

    def plug_in(self, count: int) -> None:
        """Create the switch, and connect each host to it."""
        (self._folder / "ray").mkdir()
        if not self.separate:
            return
        switch = f"{self._prefix}s"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in range(count):
            name = f"{self._prefix}h{host}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", "eth", "type", "veth", "peer", "name", f"port{host}", "netns", switch)
            _ip("-n", switch, "link", "set", f"port{host}", "master", "bridge", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{self._address(host)}/24", "dev", "eth")
            _ip("-n", name, "link", "set", "eth", "up")
            _ip("-n", name, "route", "add", "default", "dev", "eth")

    def unplug(self, count: int) -> None:
        if self.separate:
            for name in [*(f"{self._prefix}h{host}" for host in range(count)), f"{self._prefix}s"]:
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def boot(self, host: int) -> None:
        """Start the Ray node of a host."""
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        client, agent = free_ports(2)
        command += ["--disable-usage-stats", f"--node-ip-address={self._address(host)}"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        if host == 0:
            command += ["--head", f"--port={self._port}", f"--temp-dir={self._folder}/ray", "--include-dashboard=true"]
            command += [f"--dashboard-host={self._address(0)}", f"--dashboard-port={self._dashboard}"]
            command += [f"--ray-client-server-port={client}"]
        else:
            command += [f"--address={self.ray_address}"]
        log = self._folder / f"host{host}.log"
        self._nodes[host] = start(self.on(host, self._with_disk(command)), log, env=self.environment)
        if host == 0:
            check = f"import tests.servers.processes as p; assert p.answers('{self.address}/api')"
            check_on_host = self.on(0, [sys.executable, "-c", check])
            ready = (
                (lambda: subprocess.run(check_on_host, check=False, capture_output=True).returncode == 0)
                if self.separate
                else (lambda: answers(f"{self.address}/api/version"))
            )
            wait_until(ready, "Ray's head", log)

    def _with_disk(self, command: list[str]) -> list[str]:
        """Give the host its own disk: Ray's agents would replace each other's files in a shared folder."""
        if not self.separate:
            return command
        disk = self._folder / "ray"
        mount = f"mount -t tmpfs tmpfs {disk} && mkdir {disk}/tmp && TMPDIR={disk}/tmp exec {shlex.join(command)}"
        return ["sh", "-c", mount]

    def cut_off(self, host: int) -> None:
        """Unplug the host: no packet leaves or reaches it."""
        if self.separate:
            _ip("-n", f"{self._prefix}s", "link", "set", f"port{host}", "down")
        else:
            self._nodes[host].send_signal(signal.SIGKILL)

    def bring_back(self, host: int) -> None:
        """Plug the host in again and restart its Ray node."""
        end([self._nodes.pop(host)])
        if self.separate:
            _ip("-n", f"{self._prefix}s", "link", "set", f"port{host}", "up")
        self.boot(host)

    def shut_down(self) -> None:
        end(list(self._nodes.values()))


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """A cluster of hosts; the first one is the head."""
    with ray_folder() as folder:
        cluster = Hosts(Path(folder), separate=namespaces_missing() is None)
        try:
            cluster.plug_in(count)
            for host in range(count):
                cluster.boot(host)
            yield cluster
        finally:
            cluster.shut_down()
            cluster.unplug(count)
