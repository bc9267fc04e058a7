"""Forecasts the duration, the bottleneck and the cost of a run on a cluster. Pure.

Combines the measured speed of one worker of each stage with the number of workers. Stages run at the same time, so the
slowest determines the duration, unless all of them share the same CPU cores. The latency and bandwidth of object stores
are not included.
"""

import math
from dataclasses import dataclass

from varve.cluster.nodes import Cluster
from varve.cluster.placement import Placement
from varve.planning.throughput import Estimate

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected duration and cost of a run."""

    seconds: float  # from the command to the manifest
    start_s: float  # of these: until the first block, and for the checks at the end
    stages_s: dict[str, float]  # stage → seconds if it ran alone
    bottleneck: str
    cost: float | None


def forecast(
    estimate: Estimate, placement: Placement, cluster: Cluster, *, start_s: float, price_per_hour: float | None = None
) -> Forecast:
    """Forecast a run.

    Args:
        estimate: measured on the hardware of a replica.
        placement: of the run.
        cluster: the nodes.
        start_s: time that does not depend on the number of rows.
        price_per_hour: of the whole cluster, in any currency.
    """
    on_cpus = not placement.gpus
    cores = max(1.0, cluster.cpus - (0.0 if on_cpus else placement.replicas * placement.cpus))
    # One worker reads a shard and one encodes a part, so few shards or parts limit the parallelism.
    readers = min(cores, max(1, estimate.num_shards))
    part_s = estimate.encode_s / max(1, estimate.num_parts)
    stages_s = {
        "read": estimate.read_s / readers,
        "tokenize": estimate.tokenize_s / (cores if on_cpus else placement.replicas * placement.threads),
        "encode": math.ceil(estimate.num_parts / placement.replicas) * part_s,
        "write": estimate.write_s / cores,
    }
    slowest = max(stages_s, key=lambda stage: stages_s[stage])
    others_s = sum(seconds for stage, seconds in stages_s.items() if stage != "encode")
    seconds = start_s + (stages_s["encode"] + others_s if on_cpus else max(stages_s["encode"], others_s))
    cost = None if price_per_hour is None else seconds / _HOUR_S * price_per_hour
    return Forecast(seconds, start_s, stages_s, _describe(slowest, stages_s), cost)


def _describe(slowest: str, stages_s: dict[str, float]) -> str:
    descriptions = {
        "read": "storage: reading the source",
        "tokenize": "the tokenizer",
        "encode": "the device: encoding",
        "write": "storage: writing the parts",
    }
    total = sum(stages_s.values())
    share = stages_s[slowest] / total if total else 0.0
    return f"{descriptions[slowest]}, {share:.0%} of the work"
