"""Draws what happens to one job: everything follows from the seed, and from what this machine can do."""

from dataclasses import dataclass
from random import Random

from tests.faults.chaos.faults import FAULTS, Machine, Setting
from tests.faults.chaos.kinds import KINDS

# Share of the requests at most, for each fault of the proxies.
REQUEST_FAULTS = {"slow_down": 0.12, "reset": 0.08, "lost": 0.08, "twice": 0.05, "truncate": 0.03, "slow": 0.05}
# Fewer if the job is done before, or if few kinds are possible.
_EVENTS = 60
_LEAST_PAUSE_S = 0.1


@dataclass(frozen=True)
class Event:
    """A fault at some time.

    Attributes:
        after_s: since the one before, or the start of a driver.
        fault: key of `FAULTS`.
        seed: of its details.
    """

    after_s: float
    fault: str
    seed: int


@dataclass(frozen=True)
class Scenario:
    """One job and its faults.

    Attributes:
        seed: from which it is drawn.
        kind: key of `KINDS`.
        setting: where the job runs.
        requests: share of requests that each fault of the proxies affects.
        events: in their order.
        work_seed: of the job's own choices.
    """

    seed: int
    kind: str
    setting: Setting
    requests: dict[str, float]
    events: tuple[Event, ...]
    work_seed: int

    def __str__(self) -> str:
        """One phrase."""
        return f"seed {self.seed}: {self.kind} on {self.setting.store}, {self.ray}"

    @property
    def ray(self) -> str:
        """One of the names that it is drawn from."""
        return "cluster" if self.setting.has_cluster else "local"

    @property
    def command(self) -> str:
        """What runs it alone."""
        options = f"--seed {self.seed} --kind {self.kind} --store {self.setting.store} --ray {self.ray}"
        return f"python -m tests.faults.chaos {options}"


def draw_scenario(seed: int, machine: Machine, kinds: list[str], stores: list[str], rays: list[str]) -> Scenario:
    """Draw a scenario; those of consecutive seeds go through all that can be combined.

    Args:
        seed: any number.
        machine: what it can do.
        kinds: names to draw from.
        stores: names to draw from.
        rays: of "local" and "cluster", to draw from.

    Raises:
        ValueError: none of the kinds can write to any of the stores.
    """
    name, store, ray = _combination(seed, kinds, stores, rays)
    kind, draw = KINDS[name], Random(seed)
    setting = Setting(
        store=store, has_cluster=ray == "cluster", has_local_ray=kind.uses_ray, has_writer=kind.has_writer
    )
    requests = {fault: round(draw.random() * most, 3) for fault, most in REQUEST_FAULTS.items() if draw.random() < 0.5}
    events = tuple(
        Event(draw.expovariate(1 / kind.pause_s) + _LEAST_PAUSE_S, fault, draw.randrange(1 << 30))
        for fault in _draw_faults(draw, setting, machine)
    )
    return Scenario(seed, name, setting, requests, events, draw.randrange(1 << 30))


def _combination(seed: int, kinds: list[str], stores: list[str], rays: list[str]) -> tuple[str, str, str]:
    """A kind, a store, and a Ray: those of one store follow one another, since a cluster fits one."""
    found = [(kind, store, ray) for store in stores for ray in rays for kind in kinds if store in KINDS[kind].stores]
    if not found:
        msg = f"{', '.join(kinds)} cannot write to {', '.join(stores)}"
        raise ValueError(msg)
    return found[seed % len(found)]


def _draw_faults(draw: Random, setting: Setting, machine: Machine) -> list[str]:
    """Each kind that is possible in any order, then some again, none more often than it may."""
    possible = [name for name, fault in FAULTS.items() if fault.applies(setting, machine)]
    drawn = draw.sample(possible, len(possible))
    while len(drawn) < _EVENTS and (left := [name for name in possible if drawn.count(name) < FAULTS[name].most]):
        drawn += draw.choices(left, [FAULTS[name].weight for name in left])
    return drawn
