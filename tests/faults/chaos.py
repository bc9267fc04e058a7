"""Kill drivers, workers, nodes and connections of real jobs at random; compare with an undisturbed run.

python -m tests.faults.chaos --seed 1 --minutes 30

The jobs run on a Ray cluster of two nodes on this machine and write to an S3 gateway behind a proxy that injects faults
all the time. A job is restarted until it is done; then its parts are compared bit for bit with the undisturbed run.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.kill import command, compare, write_source
from tests.servers.processes import descendants
from tests.servers.proxy import Control, proxy
from tests.servers.stores import make_bucket, radosgw, s3_environment
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

KINDS = {"driver": 0.13, "worker": 0.47, "node": 0.12, "connections": 0.28}
FAULTS = {"slow_down": 0.1, "reset": 0.06, "lost": 0.05}
# Mean time between two kills of one job.
PAUSE_S = 4.0
MAX_STARTS = 60
REPLICAS = "compute.replicas=2"
JOB_S = 900
# Idle workers, and agents: a node dies with its agents, and the head must live.
_NOT_WORKING = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


class Nodes:
    """A head, on which the driver runs, and a second node, which is killed and replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self._second = self._cluster.add_node(num_cpus=2)

    @property
    def address(self) -> str:
        return self._cluster.address

    def kill_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(num_cpus=2)

    def end(self) -> None:
        self._cluster.shutdown()


@dataclass
class Chaos:
    nodes: Nodes
    control: Control
    draw: random.Random
    folder: Path
    kills: Counter = field(default_factory=Counter)
    starts: int = 0
    failed: int = 0

    def run(self, argv: list[str]) -> None:
        """Start a job and kill parts of it, until it is done."""
        log = (self.folder / "drivers.log").open("ab")
        for _ in range(MAX_STARTS):
            self.starts += 1
            driver = subprocess.Popen(argv, stdout=log, stderr=log, env=self._environment(), start_new_session=True)
            while driver.poll() is None:
                try:
                    driver.wait(timeout=self.draw.expovariate(1 / PAUSE_S) + 0.5)
                except subprocess.TimeoutExpired:
                    self._kill(driver)
            if driver.returncode == 0:
                return
            self.failed += driver.returncode == 1
            assert driver.returncode in {0, 1, -signal.SIGKILL}, f"exit code {driver.returncode}: see {log.name}"
        msg = f"not done after {MAX_STARTS} starts: see {log.name}"
        raise AssertionError(msg)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **s3_environment(self.control.endpoint), "RAY_ADDRESS": self.nodes.address}

    def _kill(self, driver: subprocess.Popen) -> None:
        kind = self.draw.choices(list(KINDS), list(KINDS.values()))[0]
        match kind:
            case "driver":
                driver.kill()
            case "worker":
                workers = working()
                if not workers:
                    return
                os.kill(self.draw.choice(workers), signal.SIGKILL)
            case "node":
                self.nodes.kill_second()
            case "connections":
                self.control.cut()
        self.kills[kind] += 1


def working() -> list[int]:
    """Ids of this process's Ray workers that have work: replicas, reads, writes, the counters."""
    return [pid for pid, title in descendants().items() if _is_working(title)]


def _is_working(title: bytes) -> bool:
    return title.startswith(b"ray::") and not title.startswith(_NOT_WORKING)


def tables(storage: Storage) -> dict[str, pa.Table]:
    names = sorted(listed.name for listed in storage.list("data"))
    return {name: pq.read_table(pa.BufferReader(storage.read(name) or b"")) for name in names}


def verify(expected: dict[str, pa.Table], storage: Storage, rows: int) -> None:
    """Compare an output with that of an undisturbed run, and check its manifest.

    Raises:
        AssertionError: a row is missing, repeated or different, or the output is not verified.
    """
    compare(expected, tables(storage), rows)
    manifest = read_manifest(storage)
    assert manifest is not None
    assert manifest.num_rows == rows
    assert manifest.canary["passed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--rows-per-part", type=int, default=20)
    arguments = parser.parse_args()
    with ExitStack() as running, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
        endpoint = running.enter_context(radosgw(folder / "radosgw"))
        control = running.enter_context(proxy(endpoint, folder))
        os.environ.update(s3_environment(endpoint))
        make_bucket(endpoint, "chaos")
        nodes = Nodes()
        running.callback(nodes.end)
        write_source(folder / "docs", arguments.rows)
        chaos = Chaos(nodes, control, random.Random(arguments.seed), folder)
        sys.stdout.write(run(chaos, arguments, folder) + "\n")


def run(chaos: Chaos, arguments: argparse.Namespace, folder: Path) -> str:
    argv = command(folder / "docs", "s3://chaos/undisturbed", arguments.rows_per_part, REPLICAS)
    subprocess.run(argv, check=True, env={**os.environ, "RAY_ADDRESS": chaos.nodes.address}, timeout=JOB_S)
    expected = tables(Storage("s3://chaos/undisturbed"))
    started, jobs = time.monotonic(), 0
    while time.monotonic() - started < arguments.minutes * 60:
        chaos.control.faults(**FAULTS, seed=chaos.draw.randrange(1 << 30))
        output = f"s3://chaos/job-{jobs:03d}"
        chaos.run(command(folder / "docs", output, arguments.rows_per_part, REPLICAS))
        jobs += 1
        verify(expected, Storage(output), arguments.rows)
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(chaos.kills.items()))
        sys.stdout.write(f"{jobs} job(s), {chaos.starts} starts, {chaos.failed} exits 1, kills: {kills}\n")
        sys.stdout.flush()
    total = sum(chaos.kills.values())
    return (
        f"seed {arguments.seed}: {jobs} jobs of {arguments.rows} rows, {total} kills ({kills}): each row once, "
        "all outputs verified, all values equal to the undisturbed run"
    )


if __name__ == "__main__":
    main()
