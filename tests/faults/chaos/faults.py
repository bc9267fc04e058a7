"""Faults at a moment: what each does to a running trial, and where it is possible.

Some happen at once, others last: several of those can last at the same time (`ongoing.py`).
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.faults.chaos.namespace import SHM, Ballast
from tests.faults.chaos.ray_processes import raylets, working

if TYPE_CHECKING:
    from tests.faults.chaos.trial import Trial

# Ends a fault; returns whether it hit something.
End = Callable[[], bool]

_STOP_S = (0.2, 2.5)
_FULL_S = (0.3, 2.5)
_JUMP_S = 600  # of a clock; object stores refuse signatures that are 15 minutes old
# What stores answer if they are full: MinIO, and Ceph beyond a quota.
_FULL_STATUSES = (507, 403)


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
    def has_ray(self) -> bool:
        return self.has_cluster or self.has_local_ray


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        begin: does it; returns what ends it, or None if there was nothing to do it to.
        applies: whether it is possible.
        lasts_s: least and most seconds.
        weight: how often it is drawn.
        most: times in a scenario, if it takes the job back or costs much.
        is_alone: whether it waits for what others hold, so that they end before it.
    """

    begin: Callable[["Trial", Random], End | None]
    applies: Callable[[Setting, Machine], bool] = lambda _setting, _machine: True
    lasts_s: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0
    most: int = 12
    is_alone: bool = False


def _at_once() -> bool:
    """The end of a fault that does not last."""
    return True


def _signalled(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _kill(pid: int) -> End | None:
    return _at_once if _signalled(pid, signal.SIGKILL) else None


def _stop(pid: int) -> End | None:
    def go_on() -> bool:
        _signalled(pid, signal.SIGCONT)
        return True

    return go_on if _signalled(pid, signal.SIGSTOP) else None


def _kill_driver(trial: "Trial", _draw: Random) -> End | None:
    return _kill(trial.driver.pid)


def _stop_driver(trial: "Trial", _draw: Random) -> End | None:
    return _stop(trial.driver.pid)


def _kill_worker(_trial: "Trial", draw: Random) -> End | None:
    workers = working()
    return _kill(draw.choice(workers)) if workers else None


def _stop_worker(_trial: "Trial", draw: Random) -> End | None:
    workers = working()
    return _stop(draw.choice(workers)) if workers else None


def _kill_node(trial: "Trial", _draw: Random) -> End | None:
    if trial.setting.has_cluster:
        return _at_once if trial.cluster.kill_second() else None
    return _at_once if sum(_kill(pid) is not None for pid in raylets(trial.driver.pid)) else None


def _stop_node(trial: "Trial", _draw: Random) -> End | None:
    pids = trial.cluster.second_raylet() if trial.setting.has_cluster else raylets(trial.driver.pid)
    return _stop(pids[0]) if pids else None


def _restart_server(trial: "Trial", _draw: Random) -> End | None:
    assert trial.store.restart
    trial.store.restart()
    return _at_once


def _stop_server(trial: "Trial", _draw: Random) -> End | None:
    assert trial.store.pid
    return _stop(trial.store.pid())


def _cut_connections(trial: "Trial", _draw: Random) -> End | None:
    assert trial.store.cut
    return _at_once if trial.store.cut() else None


def _fill_store(trial: "Trial", draw: Random) -> End | None:
    objects = trial.store.controls[0]  # the second one is that of a catalog
    objects.fill(draw.choice(_FULL_STATUSES))
    return lambda: objects.fill(0) > 0


def _start_second_driver(trial: "Trial", _draw: Random) -> End | None:
    trial.start_second()
    return _at_once


def _write_source(trial: "Trial", draw: Random) -> End | None:
    trial.work.write(draw)
    trial.is_behind = True
    return _at_once


def _fill(folder: Path) -> End:
    ballast = Ballast(folder)
    ballast.put()

    def remove() -> bool:
        ballast.remove()
        return True

    return remove


def _fill_disk(trial: "Trial", _draw: Random) -> End | None:
    assert trial.store.folder
    return _fill(trial.store.folder)


def _fill_shm(_trial: "Trial", _draw: Random) -> End | None:
    return _fill(SHM)


def _jump(trial: "Trial", draw: Random) -> End | None:
    assert trial.clock
    trial.clock.jump(draw.randint(-_JUMP_S, _JUMP_S))
    return _at_once


def _has_ray(setting: Setting, _machine: Machine) -> bool:
    return setting.has_ray


def _has_server(setting: Setting, _machine: Machine) -> bool:
    return setting.store != "disk"


def _is_object_store(setting: Setting, _machine: Machine) -> bool:
    return setting.store not in {"disk", "postgresql", "qdrant"}


def _has_writer(setting: Setting, _machine: Machine) -> bool:
    return setting.has_writer


def _has_small_shm(setting: Setting, machine: Machine) -> bool:
    return setting.has_ray and machine.has_namespace


def _has_small_disk(setting: Setting, machine: Machine) -> bool:
    return setting.store == "disk" and machine.has_namespace


def has_clock(setting: Setting, machine: Machine) -> bool:
    """Whether drivers can have a clock of their own: Ray's waits need that of the system."""
    return machine.clock is not None and not setting.has_ray


FAULTS = {
    "driver killed": Fault(_kill_driver, most=3),
    "driver stopped": Fault(_stop_driver, lasts_s=_STOP_S),
    "worker killed": Fault(_kill_worker, _has_ray, most=6, weight=2),
    "worker stopped": Fault(_stop_worker, _has_ray, _STOP_S),
    "node killed": Fault(_kill_node, _has_ray, most=2, is_alone=True),
    "node stopped": Fault(_stop_node, _has_ray, _STOP_S),
    "server killed": Fault(_restart_server, _has_server, most=4, weight=1.5, is_alone=True),
    "server stopped": Fault(_stop_server, _has_server, _STOP_S),
    "connections cut": Fault(_cut_connections, _has_server, weight=1.5, is_alone=True),
    "store full": Fault(_fill_store, _is_object_store, _FULL_S, most=4),
    "second driver": Fault(_start_second_driver, most=2, weight=0.5),
    "source changed": Fault(_write_source, _has_writer, most=6, weight=2, is_alone=True),
    "disk full": Fault(_fill_disk, _has_small_disk, _FULL_S, most=4, weight=1.5),
    "/dev/shm full": Fault(_fill_shm, _has_small_shm, _FULL_S, most=4),
    "clock jumped": Fault(_jump, has_clock, weight=1.5),
}
