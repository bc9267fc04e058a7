"""Simulates runs that are too large to try, 10^9 to 10^11 rows on 8, 64 and 1,024 GPUs, from costs of measured runs.

python -m tests.bench.simulate

Nodes and the driver fail at random with given rates. Parts in work on a failed node are encoded again; a failed driver
is restarted and lists the output. Prints the hours of a run and the share lost to failures, the commit into each
destination, and for each component the size at which it exceeds its bound (tests/bench/limits.py).
"""

import argparse
import random
import sys
from dataclasses import dataclass

from tests.bench.limits import MEASURED, NODE_BYTES_PER_S, NODES, Costs, Limit, Workload, limits

GPUS_PER_NODE = 8
RESTART_S = 120.0  # of a node or a driver: new machine, Ray, loading the model
RUNS = 20  # of which the median is shown
_ROWS, _GPUS = (1e9, 1e10, 1e11), (8, 64, 1024)


@dataclass(frozen=True)
class Failures:
    """Mean hours between failures."""

    node_hours: float = 24.0  # of one spot node
    driver_hours: float = 720.0


@dataclass(frozen=True)
class Outcome:
    """One simulated run, up to its last part."""

    hours: float
    gpu_hours: float  # if nothing but the GPUs took time
    lost_share: float
    parts: float
    driver_share: float  # of the time that the driver is busy; above 1 the GPUs wait for it
    counters_share: float


def simulate(rows: float, gpus: int, costs: Costs, workload: Workload, failures: Failures, seed: int) -> Outcome:
    """Simulate one run, one failure at a time.

    Args:
        rows: of the source.
        gpus: their number.
        costs: of one part.
        workload: what is encoded.
        failures: their rates.
        seed: of the random failures.
    """
    draw = random.Random(seed)
    rows_per_part = workload.rows_per_part(rows)
    parts, part_s = rows / rows_per_part, rows_per_part / workload.rows_per_gpu_s
    counters_s = costs.counter_s * costs.calls(rows_per_part / workload.block_rows)
    # The slowest limits the run: the GPUs together, or the driver or the counters, which are one process each.
    per_s = min(gpus / part_s, 1 / costs.driver_s, 1 / counters_s)
    nodes = max(1, gpus // GPUS_PER_NODE)
    now, done, lost_s = 0.0, 0.0, 0.0
    rates = (nodes / (failures.node_hours * 3600), 1 / (failures.driver_hours * 3600))
    while done < parts:
        next_failure_s = draw.expovariate(sum(rates))
        step = min(next_failure_s, (parts - done) / per_s)
        now, done = now + step, done + step * per_s
        if step < next_failure_s:
            break
        if draw.random() < rates[0] / sum(rates):
            # Half a part on each GPU of the node, and the node's share of the time until its restart.
            failure_s = (part_s / 2 + RESTART_S) * GPUS_PER_NODE / max(gpus, GPUS_PER_NODE)
        else:
            failure_s = part_s / 2 + RESTART_S + done * costs.list_s
        now, lost_s = now + failure_s, lost_s + failure_s
    gpu_rate = gpus / part_s
    return Outcome(
        hours=now / 3600,
        gpu_hours=parts / gpu_rate / 3600,
        lost_share=lost_s / now,
        parts=parts,
        driver_share=gpu_rate * costs.driver_s,
        counters_share=gpu_rate * counters_s,
    )


def median(rows: float, gpus: int, costs: Costs, workload: Workload, failures: Failures) -> Outcome:
    """The run of median duration."""
    outcomes = [simulate(rows, gpus, costs, workload, failures, seed) for seed in range(RUNS)]
    return sorted(outcomes, key=lambda outcome: outcome.hours)[RUNS // 2]


def runs_table(costs: Costs, workload: Workload, failures: Failures) -> str:
    """The hours of each run, and what its parts need."""
    titles = (
        "rows", "GPUs", "parts", "hours", "GPUs alone", "lost to failures", "driver busy", "counters busy",
        "driver's memory", "manifest",
    )  # fmt: skip
    lines = [_row(titles), _row(["---"] * len(titles))]
    for rows in _ROWS:
        for gpus in _GPUS:
            run = median(rows, gpus, costs, workload, failures)
            memory = costs.base_memory_bytes + run.parts * costs.run_memory_bytes
            cells = [
                f"{rows:.0e}",
                f"{gpus:,}",
                f"{run.parts:,.0f}",
                f"{run.hours:,.1f}",
                f"{run.gpu_hours:,.1f}",
                f"{run.lost_share:.1%}",
                f"{run.driver_share:.0%}",
                f"{run.counters_share:.0%}",
                f"{memory / 1e9:.1f} GB",
                f"{run.parts * costs.manifest_bytes / 1e6:,.0f} MB",
            ]
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def commits_table(costs: Costs, workload: Workload) -> str:
    """Minutes and memory of what follows the last part, for each destination, on the nodes of 1,024 GPUs."""
    titles = ["destination", *(f"{rows:.0e} rows" for rows in _ROWS), "metadata at the last"]
    lines = [_row(titles), _row(["---"] * len(titles))]
    for name, commit in costs.commits.items():
        cells, metadata = [name], 0.0
        for rows in _ROWS:
            parts = rows / workload.rows_per_part(rows)
            memory = costs.base_memory_bytes + parts * commit.memory_bytes
            reading_s = commit.passes * rows * workload.row_bytes / NODES / NODE_BYTES_PER_S
            reading = f" and {reading_s / 60:.1f} of reading" if reading_s else ""
            driver_s = parts * commit.seconds + rows * commit.row_s
            cells.append(f"{driver_s / 60:,.1f} min{reading}, {memory / 1e9:.1f} GB")
            metadata = parts * commit.metadata_bytes
        lines.append(_row([*cells, f"{metadata / 1e6:,.0f} MB"]))
    return "\n".join(lines) + "\n"


def limits_table(costs: Costs, workload: Workload) -> str:
    """For each component the size at which it exceeds its bound."""
    titles = ("component and bound", "cost", "measured", "holds up to", "rows", "what it would take")
    lines = [_row(titles), _row(["---"] * len(titles))]
    lines += [_row(_limit_cells(limit, workload)) for limit in limits(costs, workload)]
    return "\n".join(lines) + "\n"


def _limit_cells(limit: Limit, workload: Workload) -> list[str]:
    up_to, rows = "any number", limit.rows
    if limit.gpus is not None:
        up_to = f"{limit.gpus:,.0f} GPUs"
    if limit.parts is not None:
        up_to, rows = f"{limit.parts:,.0f} parts", workload.rows_of(limit.parts)
    return [limit.what, limit.cost, limit.measured, up_to, "any" if rows is None else f"{rows:.1e}", limit.remedy]


def _row(cells: "tuple[str, ...] | list[str]") -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.simulate", description=__doc__)
    parser.add_argument("--rows-per-gpu-s", type=float, default=4000.0, help="bert-base at 128 tokens on an H200")
    parser.add_argument("--row-bytes", type=float, default=3072.0, help="of a row of the output: 768 float32")
    parser.add_argument("--node-hours", type=float, default=24.0, help="mean time between failures of a spot node")
    parser.add_argument("--driver-hours", type=float, default=720.0, help="mean time between failures of the head node")
    arguments = parser.parse_args()
    workload = Workload(row_bytes=arguments.row_bytes, rows_per_gpu_s=arguments.rows_per_gpu_s)
    failures = Failures(arguments.node_hours, arguments.driver_hours)
    tables = (
        runs_table(MEASURED, workload, failures),
        commits_table(MEASURED, workload),
        limits_table(MEASURED, workload),
    )
    sys.stdout.write("\n".join(tables))


if __name__ == "__main__":
    main()
