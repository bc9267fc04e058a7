"""Draws what happens to one job: everything follows from the seed, and from what this machine can do."""

from dataclasses import dataclass
from random import Random

from tests.faults.chaos.faults import FAULTS, Machine, Setting
from tests.faults.chaos.kinds import KINDS

# Share of the requests at most, for each fault of the proxies.
REQUEST_FAULTS = {"slow_down": 0.12, "reset": 0.08, "lost": 0.08, "twice": 0.05, "truncate": 0.03, "slow": 0.05}
_MOST_EVENTS = 8
_LEAST_PAUSE_S = 0.2


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
        return f"seed {self.seed}: {self.kind} on {self.setting.store}, {self._ray}"

    @property
    def _ray(self) -> str:
        return "cluster" if self.setting.has_cluster else "local"

    @property
    def command(self) -> str:
        """What runs it alone."""
        options = f"--seed {self.seed} --kind {self.kind} --store {self.setting.store} --ray {self._ray}"
        return f"python -m tests.faults.chaos {options}"


def draw_scenario(seed: int, machine: Machine, kinds: list[str], stores: list[str], rays: list[str]) -> Scenario | None:
    """Draw a scenario.

    Args:
        seed: any number.
        machine: what it can do.
        kinds: names to draw from.
        stores: names to draw from.
        rays: of "local" and "cluster", to draw from.

    Returns:
        None if the drawn kind cannot write to any of the stores.
    """
    name = Random(f"kind {seed}").choice(kinds)
    kind = KINDS[name]
    allowed = [store for store in kind.stores if store in stores]
    if not allowed:
        return None
    draw = Random(seed)  # of the rest, so that a scenario stays the same if only its kind and its store are drawn from
    setting = Setting(
        store=Random(f"store {seed}").choice(allowed),
        has_cluster=Random(f"ray {seed}").choice(rays) == "cluster",
        has_local_ray=kind.uses_ray,
        has_writer=kind.has_writer,
    )
    requests = {fault: round(draw.random() * most, 3) for fault, most in REQUEST_FAULTS.items() if draw.random() < 0.5}
    choices = {name: fault.weight for name, fault in FAULTS.items() if fault.applies(setting, machine)}
    events = tuple(
        Event(
            draw.expovariate(1 / kind.pause_s) + _LEAST_PAUSE_S,
            draw.choices(list(choices), list(choices.values()))[0],
            draw.randrange(1 << 30),
        )
        for _ in range(draw.randint(3, _MOST_EVENTS))
    )
    return Scenario(seed, name, setting, requests, events, draw.randrange(1 << 30))
