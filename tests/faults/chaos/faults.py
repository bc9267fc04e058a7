"""Faults at a moment: what each does to a running trial, and where it is possible."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.faults.chaos.namespace import SHM, Ballast
from tests.faults.chaos.ray_processes import raylets, working

if TYPE_CHECKING:
    from tests.faults.chaos.trial import Trial

_STOP_S = (0.3, 4.0)
_FULL_S = (0.3, 3.0)
_JUMP_S = 600  # of a clock; object stores refuse signatures that are 15 minutes old


@dataclass(frozen=True)
class Machine:
    """What faults need of a machine: small file systems (`namespace.py`), and a clock (`clock.py`)."""

    has_namespace: bool
    clock: Path | None


@dataclass(frozen=True)
class Setting:
    """Where a job runs.

    Attributes:
        store: name of the store.
        has_cluster: whether it joins a cluster of two nodes.
        has_local_ray: whether it would start a Ray without one.
        has_writer: whether its source may change.
    """

    store: str
    has_cluster: bool
    has_local_ray: bool
    has_writer: bool

    @property
    def has_clock(self) -> bool:
        """Whether drivers can have a clock of their own: Ray's waits need that of the system."""
        return not self.has_cluster and not self.has_local_ray


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        inject: does it; returns False if there was nothing to do it to.
        applies: whether it is possible.
        weight: how often it is drawn.
    """

    inject: Callable[["Trial", Random], bool]
    applies: Callable[[Setting, Machine], bool] = lambda _setting, _machine: True
    weight: float = 1.0


def _kill(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _stop(pid: int, draw: Random) -> bool:
    with suppress(ProcessLookupError), _stopped(pid):
        time.sleep(draw.uniform(*_STOP_S))
        return True
    return False


def _kill_driver(trial: "Trial", _draw: Random) -> bool:
    return _kill(trial.driver.pid)


def _stop_driver(trial: "Trial", draw: Random) -> bool:
    return _stop(trial.driver.pid, draw)


def _kill_worker(_trial: "Trial", draw: Random) -> bool:
    workers = working()
    return bool(workers) and _kill(draw.choice(workers))


def _stop_worker(_trial: "Trial", draw: Random) -> bool:
    workers = working()
    return bool(workers) and _stop(draw.choice(workers), draw)


def _kill_node(trial: "Trial", _draw: Random) -> bool:
    if trial.setting.has_cluster:
        trial.cluster.kill_second()
        return True
    return sum(_kill(pid) for pid in raylets(trial.driver.pid)) > 0


def _stop_node(trial: "Trial", draw: Random) -> bool:
    pids = [trial.cluster.second_raylet()] if trial.setting.has_cluster else raylets(trial.driver.pid)
    return bool(pids) and _stop(pids[0], draw)


def _restart_server(trial: "Trial", _draw: Random) -> bool:
    assert trial.store.restart
    trial.store.restart()
    return True


def _stop_server(trial: "Trial", draw: Random) -> bool:
    assert trial.store.pid
    return _stop(trial.store.pid(), draw)


def _cut_connections(trial: "Trial", _draw: Random) -> bool:
    return sum(control.cut() for control in trial.store.controls) >= 0


def _start_second_driver(trial: "Trial", _draw: Random) -> bool:
    trial.start_second()
    return True


def _write_source(trial: "Trial", draw: Random) -> bool:
    trial.work.write(draw)
    trial.is_behind = True
    return True


def _fill(folder: Path, draw: Random) -> bool:
    with Ballast(folder):
        time.sleep(draw.uniform(*_FULL_S))
    return True


def _fill_disk(trial: "Trial", draw: Random) -> bool:
    assert trial.store.folder
    return _fill(trial.store.folder, draw)


def _fill_shm(_trial: "Trial", draw: Random) -> bool:
    return _fill(SHM, draw)


def _jump(trial: "Trial", draw: Random) -> bool:
    assert trial.clock
    trial.clock.jump(draw.randint(-_JUMP_S, _JUMP_S))
    return True


def _has_ray(setting: Setting, _machine: Machine) -> bool:
    return setting.has_cluster or setting.has_local_ray


def _has_server(setting: Setting, _machine: Machine) -> bool:
    return setting.store != "disk"


def _has_proxy(setting: Setting, _machine: Machine) -> bool:
    return setting.store not in {"disk", "postgresql"}


FAULTS = {
    "driver killed": Fault(_kill_driver, weight=1.5),
    "driver stopped": Fault(_stop_driver),
    "worker killed": Fault(_kill_worker, _has_ray, 2),
    "worker stopped": Fault(_stop_worker, _has_ray),
    "node killed": Fault(_kill_node, _has_ray),
    "node stopped": Fault(_stop_node, _has_ray),
    "server killed": Fault(_restart_server, _has_server, 1.5),
    "server stopped": Fault(_stop_server, _has_server),
    "connections cut": Fault(_cut_connections, _has_proxy),
    "second driver": Fault(_start_second_driver),
    "source changed": Fault(_write_source, lambda setting, _machine: setting.has_writer, 1.5),
    "disk full": Fault(_fill_disk, lambda setting, machine: setting.store == "disk" and machine.has_namespace, 1.5),
    "/dev/shm full": Fault(_fill_shm, lambda setting, machine: _has_ray(setting, machine) and machine.has_namespace),
    "clock jumped": Fault(_jump, lambda setting, machine: setting.has_clock and machine.clock is not None),
}
