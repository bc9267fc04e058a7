"""Simulates runs that are too large to try, 10^9 and 10^11 rows on 8, 64 and 1,024 GPUs, from measured small runs.

python -m tests.bench.simulate --driver-ms 8 --list-us 30 --memory-bytes 2500 --manifest-bytes 280

Nodes and the driver fail at random with given rates. Parts in work on a failed node are encoded again; a failed driver
is restarted and lists the output. Prints the hours of a run and the share lost to failures, the driver's memory, the
size of the manifest and the requests to the store.
"""

import argparse
import random
import sys
from dataclasses import dataclass

GPUS_PER_NODE = 8
RESTART_S = 120.0  # of a node or a driver: new machine, Ray, loading the model
REQUESTS_PER_PART = 2  # a conditional PUT; only resumed parts need a GET, for the footer


@dataclass(frozen=True)
class Costs:
    driver_s: float  # of the driver, per part
    list_s: float  # per part
    memory_bytes: float  # of the driver, per part
    manifest_bytes: float  # per part
    rows_per_gpu_s: float
    rows_per_part: int


@dataclass(frozen=True)
class Outcome:
    hours: float
    ideal_hours: float
    lost_share: float
    driver_gb: float
    manifest_gb: float
    parts: float
    puts_per_s: float
    driver_share: float  # share of the time that the driver is busy; above 1 the GPUs wait for it


def simulate(rows: float, gpus: int, costs: Costs, node_hours: float, driver_hours: float, seed: int) -> Outcome:
    """Simulate one run, one failure at a time.

    Args:
        rows: of the source.
        gpus: their number.
        costs: of one part.
        node_hours: mean time between failures of one node.
        driver_hours: mean time between failures of the driver.
        seed: of the random failures.
    """
    draw = random.Random(seed)
    parts = rows / costs.rows_per_part
    part_s = costs.rows_per_part / costs.rows_per_gpu_s
    # The slower of the two limits the run: the GPUs together, or the driver, which schedules parts one by one.
    per_s = min(gpus / part_s, 1 / costs.driver_s)
    nodes = max(1, gpus // GPUS_PER_NODE)
    ideal_s, now, done, lost_s = parts / per_s, 0.0, 0.0, 0.0
    rates = (nodes / (node_hours * 3600), 1 / (driver_hours * 3600))
    while done < parts:
        next_failure_s = draw.expovariate(sum(rates))
        step = min(next_failure_s, (parts - done) / per_s)
        now, done = now + step, done + step * per_s
        if done >= parts or step < next_failure_s:
            break
        if draw.random() < rates[0] / sum(rates):
            # Half a part on each GPU of the node, and the node's share of the time until its restart.
            share = GPUS_PER_NODE / max(gpus, GPUS_PER_NODE)
            failure_s = (part_s / 2 + RESTART_S) * share
        else:
            failure_s = part_s / 2 + RESTART_S + done * costs.list_s
        now, lost_s = now + failure_s, lost_s + failure_s
    return Outcome(
        hours=now / 3600,
        ideal_hours=ideal_s / 3600,
        lost_share=lost_s / now,
        driver_gb=0.6 + parts * costs.memory_bytes / 1e9,
        manifest_gb=parts * costs.manifest_bytes / 1e9,
        parts=parts,
        puts_per_s=per_s * REQUESTS_PER_PART,
        driver_share=gpus / part_s * costs.driver_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver-ms", type=float, required=True, help="CPU time of the driver per part")
    parser.add_argument("--list-us", type=float, required=True, help="listing time per part")
    parser.add_argument("--memory-bytes", type=float, required=True, help="memory of the driver per part")
    parser.add_argument("--manifest-bytes", type=float, required=True, help="size of the manifest per part")
    parser.add_argument("--rows-per-gpu-s", type=float, default=4000.0, help="bert-base at 128 tokens on an H200")
    parser.add_argument("--rows-per-part", type=int, default=21_504, help="64 MB of 768 float32")
    parser.add_argument("--node-hours", type=float, default=24.0, help="mean time between failures of a spot node")
    parser.add_argument("--driver-hours", type=float, default=720.0, help="mean time between failures of the head node")
    arguments = parser.parse_args()
    costs = Costs(
        arguments.driver_ms / 1e3,
        arguments.list_us / 1e6,
        arguments.memory_bytes,
        arguments.manifest_bytes,
        arguments.rows_per_gpu_s,
        arguments.rows_per_part,
    )
    sys.stdout.write(
        "| rows | GPUs | parts | hours | lost to failures | driver's memory | manifest | PUTs/s | driver busy |\n"
        f"|{' --- |' * 9}\n"
    )
    for rows in (1e9, 1e11):
        for gpus in (8, 64, 1024):
            outcomes = [
                simulate(rows, gpus, costs, arguments.node_hours, arguments.driver_hours, seed) for seed in range(20)
            ]
            median = sorted(outcomes, key=lambda outcome: outcome.hours)[len(outcomes) // 2]
            sys.stdout.write(
                f"| {rows:.0e} | {gpus:,} | {median.parts:,.0f} | {median.hours:,.1f} | {median.lost_share:.2%} | "
                f"{median.driver_gb:.1f} GB | {median.manifest_gb:.2f} GB | {median.puts_per_s:.1f} | "
                f"{median.driver_share:.1%} |\n"
            )


if __name__ == "__main__":
    main()
