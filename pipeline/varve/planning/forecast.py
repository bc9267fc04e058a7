"""How long a run will take on a cluster, which stage it will wait for, and what that costs. Pure.

From what one worker of each stage was measured to take, and from how many of them the placement has at once. The stages
work at the same time: the slowest decides, unless all of them share the same cores. What a store adds to reading and
writing is not known before.
"""

import math
from dataclasses import dataclass

from varve.cluster.nodes import Cluster
from varve.cluster.placement import Placement
from varve.planning.throughput import Estimate

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run, before it starts."""

    seconds: float  # from the command to the manifest
    start_s: float  # of these: until the first block, and for the proof at the end
    stages_s: dict[str, float]  # stage → seconds that it would take if it were alone
    bottleneck: str
    cost: float | None


def forecast(
    estimate: Estimate, placement: Placement, cluster: Cluster, *, start_s: float, price_per_hour: float | None = None
) -> Forecast:
    """The time and the cost of a run.

    Args:
        estimate: measured where a replica would stand.
        placement: of the run.
        cluster: the nodes.
        start_s: what a run needs beside its rows.
        price_per_hour: of the whole cluster, in any currency.
    """
    on_cpus = not placement.gpus
    cores = max(1.0, cluster.cpus - (0.0 if on_cpus else placement.replicas * placement.cpus))
    # A shard is read, and a part encoded, by one worker: where they are few the last ones work alone.
    readers = min(cores, max(1, estimate.num_shards))
    part_s = estimate.encode_s / max(1, estimate.num_parts)
    stages_s = {
        "read": estimate.read_s / readers,
        "tokenize": estimate.tokenize_s / (cores if on_cpus else max(1, placement.tokenizers)),
        "encode": math.ceil(estimate.num_parts / placement.replicas) * part_s,
        "write": estimate.write_s / cores,
    }
    slowest = max(stages_s, key=lambda stage: stages_s[stage])
    beside = sum(seconds for stage, seconds in stages_s.items() if stage != "encode")
    working_s = stages_s["encode"] + beside if on_cpus else max(stages_s["encode"], beside)
    seconds = start_s + working_s
    cost = None if price_per_hour is None else seconds / _HOUR_S * price_per_hour
    return Forecast(seconds, start_s, stages_s, _told(slowest, stages_s), cost)


def _told(slowest: str, stages_s: dict[str, float]) -> str:
    words = {
        "read": "storage: reading the source",
        "tokenize": "the tokenizer",
        "encode": "the device: encoding",
        "write": "storage: making the parts",
    }
    total = sum(stages_s.values())
    share = stages_s[slowest] / total if total else 0.0
    return f"{words[slowest]}, {share:.0%} of the work"
