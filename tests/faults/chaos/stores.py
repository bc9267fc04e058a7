"""Where scenarios write: a disk, object stores behind a proxy that injects faults, and databases.

A store starts with its first scenario. Drivers and workers use its proxy; this process, which compares, does not.
"""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from tests.faults.chaos.server_process import ServerProcess
from tests.servers.proxy import Control, proxy
from tests.servers.seaweed import SeaweedServer, seaweed_server
from tests.servers.stores import (
    azure_environment,
    azurite,
    make_bucket,
    make_container,
    missing_server,
    radosgw,
    s3_environment,
)

NAMES = ("disk", "ceph", "seaweed", "azure", "postgresql", "qdrant")
_BUCKET = "chaos"


@dataclass
class Store:
    """A store that runs.

    Attributes:
        name: one of `NAMES`.
        root: folder, bucket or server below which scenarios have their addresses.
        direct: environment variables of this process.
        faulty: environment variables of drivers and workers.
        controls: of the proxies in front of it.
        cut: breaks the connections to it; returns how many.
        restart: kills its server and starts it again.
        pid: returns the id of its server.
    """

    name: str
    root: str
    direct: dict[str, str] = field(default_factory=dict)
    faulty: dict[str, str] = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    cut: Callable[[], int] | None = None
    restart: Callable[[], object] | None = None
    pid: Callable[[], int] | None = None
    separator: str = "/"
    numbers: count = field(default_factory=count)

    def __post_init__(self) -> None:
        """Connections end at the proxies, if it has some."""
        if self.controls:
            self.cut = lambda: sum(control.cut() for control in self.controls)

    def new_address(self) -> str:
        """An address that no scenario has used."""
        return f"{self.root}{self.separator}s{next(self.numbers)}"

    @property
    def folder(self) -> Path | None:
        """Of a disk."""
        return Path(self.root) if self.name == "disk" else None

    def calm(self) -> None:
        """No more faults of requests."""
        for control in self.controls:
            control.faults()


class Stores:
    """All stores, each started when it is first needed; they end with `running`."""

    def __init__(self, running: ExitStack, folder: Path, disk: Path) -> None:
        self._running, self._folder, self._disk = running, folder, disk
        self._started: dict[str, Store] = {}

    def open(self, name: str) -> Store:
        """Start a store unless it runs, and set the variables of this process for it."""
        if name not in self._started:
            folder = self._folder / f"server-{name}"
            folder.mkdir()
            start = {"ceph": self._ceph, "seaweed": self._seaweed, "azure": self._azure, "disk": self._local}
            start |= {"postgresql": self._postgresql, "qdrant": self._qdrant}
            self._started[name] = start[name](folder)
        store = self._started[name]
        os.environ.update(store.direct)
        return store

    def _proxy(self, endpoint: str, folder: Path) -> Control:
        folder.mkdir(exist_ok=True)
        return self._running.enter_context(proxy(endpoint, folder))

    def _local(self, _folder: Path) -> Store:
        catalog = {
            "PYICEBERG_CATALOG__LAKE__TYPE": "sql",
            "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{self._disk}/catalog.db",
            "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{self._disk}/warehouse",
        }
        return Store("disk", str(self._disk), catalog, catalog)

    def _ceph(self, folder: Path) -> Store:
        endpoint = self._running.enter_context(radosgw(folder / "server"))
        make_bucket(endpoint, _BUCKET)
        control = self._proxy(endpoint, folder)
        server = ServerProcess(self._running, lambda title: title.startswith(b"radosgw\0"), endpoint, folder / "log")
        return Store(
            "ceph", f"s3://{_BUCKET}", s3_environment(endpoint), s3_environment(control.endpoint), (control,),
            restart=server.restart, pid=lambda: server.pid,
        )  # fmt: skip

    def _seaweed(self, folder: Path) -> Store:
        seaweed = self._running.enter_context(seaweed_server(folder))
        s3, catalog = self._proxy(seaweed.s3, folder / "s3"), self._proxy(seaweed.catalog, folder / "catalog")
        faulty = SeaweedServer(s3.endpoint, catalog.endpoint, seaweed.lance)
        server = ServerProcess(self._running, lambda title: b"\0mini\0" in title, seaweed.s3, folder / "log")
        return Store(
            "seaweed", seaweed.new_folder(), seaweed.environment(), faulty.environment(), (s3, catalog),
            restart=server.restart, pid=lambda: server.pid,
        )  # fmt: skip

    def _azure(self, folder: Path) -> Store:
        endpoint = self._running.enter_context(azurite(folder))
        make_container(endpoint, _BUCKET)
        control = self._proxy(endpoint, folder)
        server = ServerProcess(self._running, lambda title: b"azurite-blob" in title, endpoint, folder / "log")
        return Store(
            "azure", f"az://{_BUCKET}", azure_environment(endpoint), azure_environment(control.endpoint), (control,),
            restart=server.restart, pid=lambda: server.pid,
        )  # fmt: skip

    def _postgresql(self, _folder: Path) -> Store:
        from tests.servers.postgres import postgres

        server = self._running.enter_context(postgres())
        root = server.destination(server.create_database(), "")
        restart = partial(server.restart, signal.SIGQUIT)
        return Store(
            "postgresql", root, cut=server.cut_connections, restart=restart, pid=server.postmaster, separator=""
        )

    def _qdrant(self, folder: Path) -> Store:
        from tests.servers.qdrant import qdrant

        server = self._running.enter_context(qdrant(folder))
        control = self._proxy(f"http://{server.host}", folder / "proxy")

        def restart() -> None:
            server.kill()
            server.start()

        root = control.endpoint.removeprefix("http://")
        return Store("qdrant", root, controls=(control,), restart=restart, pid=server.pid)


def missing(name: str) -> str | None:
    """Why a store cannot be started on this machine; None if it can."""
    servers = {"ceph": "radosgw", "azure": "azurite"}
    return missing_server(servers[name]) if name in servers else None
