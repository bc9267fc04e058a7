"""Runs too large to try: 10^9 and 10^11 rows on 8, 64 and 1,024 GPUs, from figures measured on small ones.

python -m tests.bench.simulate --driver-ms 8 --list-us 30 --memory-bytes 2500 --manifest-bytes 280

Nodes and the driver die at random, at given rates; a part under way on a node that dies is encoded again, a driver that
dies is started again and lists the output. Printed: how long a run takes and which part of it was lost, the driver's
memory, the size of the manifest, requests to the store.
"""

import argparse
import random
import sys
from dataclasses import dataclass

GPUS_PER_NODE = 8
RESTART_S = 120.0  # of a node or a driver: a machine, Ray, the model
REQUESTS_PER_PART = 2  # a conditional PUT; its footer comes back with the task, so a GET for a resumed part alone


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
    driver_share: float  # of the time that the driver works; above 1 it is what the GPUs wait for


def simulate(rows: float, gpus: int, costs: Costs, node_hours: float, driver_hours: float, seed: int) -> Outcome:
    """One run, failure by failure.

    Args:
        rows: of the source.
        gpus: that work at once.
        costs: measured.
        node_hours: mean time between failures of one node.
        driver_hours: of the driver.
        seed: of the failures.
    """
    draw = random.Random(seed)
    parts = rows / costs.rows_per_part
    part_s = costs.rows_per_part / costs.rows_per_gpu_s
    # Whoever is slower sets the pace: the GPUs together, or the driver that hands parts out one by one.
    per_s = min(gpus / part_s, 1 / costs.driver_s)
    nodes = max(1, gpus // GPUS_PER_NODE)
    ideal_s, now, done, lost_s = parts / per_s, 0.0, 0.0, 0.0
    rates = (nodes / (node_hours * 3600), 1 / (driver_hours * 3600))
    while done < parts:
        until = draw.expovariate(sum(rates))
        step = min(until, (parts - done) / per_s)
        now, done = now + step, done + step * per_s
        if done >= parts or step < until:
            break
        if draw.random() < rates[0] / sum(rates):
            # Half a part on each of the node's GPUs, and the node's share of the time until it is back.
            share = GPUS_PER_NODE / max(gpus, GPUS_PER_NODE)
            gone_s = (part_s / 2 + RESTART_S) * share
        else:
            gone_s = part_s / 2 + RESTART_S + done * costs.list_s
        now, lost_s = now + gone_s, lost_s + gone_s
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
    parser.add_argument("--driver-ms", type=float, required=True, help="of the driver, per part")
    parser.add_argument("--list-us", type=float, required=True, help="per part")
    parser.add_argument("--memory-bytes", type=float, required=True, help="of the driver, per part")
    parser.add_argument("--manifest-bytes", type=float, required=True, help="per part")
    parser.add_argument("--rows-per-gpu-s", type=float, default=4000.0, help="bert-base at 128 tokens on an H200")
    parser.add_argument("--rows-per-part", type=int, default=21_504, help="64 MB of 768 float32")
    parser.add_argument("--node-hours", type=float, default=24.0, help="mean time between failures of a spot node")
    parser.add_argument("--driver-hours", type=float, default=720.0, help="of the head")
    chosen = parser.parse_args()
    costs = Costs(
        chosen.driver_ms / 1e3,
        chosen.list_us / 1e6,
        chosen.memory_bytes,
        chosen.manifest_bytes,
        chosen.rows_per_gpu_s,
        chosen.rows_per_part,
    )
    sys.stdout.write(
        "| rows | GPUs | parts | hours | lost to failures | driver's memory | manifest | PUTs/s | driver busy |\n"
        f"|{' --- |' * 9}\n"
    )
    for rows in (1e9, 1e11):
        for gpus in (8, 64, 1024):
            tries = [simulate(rows, gpus, costs, chosen.node_hours, chosen.driver_hours, seed) for seed in range(20)]
            middle = sorted(tries, key=lambda run: run.hours)[len(tries) // 2]
            sys.stdout.write(
                f"| {rows:.0e} | {gpus:,} | {middle.parts:,.0f} | {middle.hours:,.1f} | {middle.lost_share:.2%} | "
                f"{middle.driver_gb:.1f} GB | {middle.manifest_gb:.2f} GB | {middle.puts_per_s:.1f} | "
                f"{middle.driver_share:.1%} |\n"
            )


if __name__ == "__main__":
    main()
