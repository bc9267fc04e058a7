"""Kill drivers, workers, nodes and connections of real jobs at random, and compare with an undisturbed run.

python -m tests.faults.chaos --seed 1 --minutes 30

A Ray cluster of two nodes on this machine, an S3 gateway behind a proxy that spoils requests the whole time. A job is
started again until it is done, then its parts are compared with those of the undisturbed run, bit for bit.
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

from tests.faults.kill import write_source
from tests.servers.processes import descendants
from tests.servers.proxy import Control, proxy
from tests.servers.stores import make_bucket, radosgw, s3_environment
from varve.cli.corpus import model_folder
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

KINDS = {"driver": 0.13, "worker": 0.47, "node": 0.12, "connections": 0.28}
FAULTS = {"slow_down": 0.1, "reset": 0.06, "lost": 0.05}
# Between two kills of one job, on average.
PAUSE_S = 4.0
MAX_STARTS = 60
JOB_S = 900
# A node dies with its agents, and the head must live.
_NOT_WORKING = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


class Nodes:
    """A head, which the driver sits on, and a second node, which comes and goes."""

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
        """Start a job again and again, kill what it stands on, until it is done."""
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
    """The workers of our own Ray that have something to do: replicas, reads, writes, the tally."""
    return [pid for pid, title in descendants().items() if _is_working(title)]


def _is_working(title: bytes) -> bool:
    return title.startswith(b"ray::") and not title.startswith(_NOT_WORKING)


def tables(storage: Storage) -> dict[str, pa.Table]:
    names = sorted(found.name for found in storage.list("data"))
    return {name: pq.read_table(pa.BufferReader(storage.read(name) or b"")) for name in names}


def compare(quiet: dict[str, pa.Table], storage: Storage, rows: int) -> None:
    """
    Raises:
        AssertionError: a row is lost, doubled or different, or the run is not proved.
    """
    found = tables(storage)
    assert found.keys() == quiet.keys(), sorted(found.keys() ^ quiet.keys())
    for name, table in quiet.items():
        assert found[name].equals(table), f"{name} differs from the undisturbed run"
    pairs = [pair for t in found.values() for pair in zip(t["shard"].to_pylist(), t["row"].to_pylist(), strict=True)]
    assert len(pairs) == len(set(pairs)) == rows
    manifest = read_manifest(storage)
    assert manifest is not None
    assert manifest.num_rows == rows
    assert manifest.canary["passed"]


def command(source: Path, output: str, rows_per_part: int) -> list[str]:
    job = ["--dataset", str(source), "--text", "text", "--model", str(model_folder()), "--output", output]
    more = ["--max-tokens", "128", "--feature", "e=mean", "--feature", "c=cls@all"]
    settings = [f"output.rows_per_part={rows_per_part}", "compute.replicas=2"]
    return [sys.executable, "-m", "varve", "embed", *job, *more, *(part for s in settings for part in ("--set", s))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--rows-per-part", type=int, default=20)
    chosen = parser.parse_args()
    with ExitStack() as running, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
        endpoint = running.enter_context(radosgw(folder / "radosgw"))
        control = running.enter_context(proxy(endpoint, folder))
        os.environ.update(s3_environment(endpoint))
        make_bucket(endpoint, "chaos")
        nodes = Nodes()
        running.callback(nodes.end)
        write_source(folder / "docs", chosen.rows)
        chaos = Chaos(nodes, control, random.Random(chosen.seed), folder)
        told = run(chaos, chosen, folder)
        sys.stdout.write(told + "\n")


def run(chaos: Chaos, chosen: argparse.Namespace, folder: Path) -> str:
    argv = command(folder / "docs", "s3://chaos/quiet", chosen.rows_per_part)
    subprocess.run(argv, check=True, env={**os.environ, "RAY_ADDRESS": chaos.nodes.address}, timeout=JOB_S)
    quiet = tables(Storage("s3://chaos/quiet"))
    began, jobs = time.monotonic(), 0
    while time.monotonic() - began < chosen.minutes * 60:
        chaos.control.faults(**FAULTS, seed=chaos.draw.randrange(1 << 30))
        output = f"s3://chaos/job-{jobs:03d}"
        chaos.run(command(folder / "docs", output, chosen.rows_per_part))
        jobs += 1
        compare(quiet, Storage(output), chosen.rows)
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(chaos.kills.items()))
        sys.stdout.write(f"{jobs} job(s), {chaos.starts} starts, {chaos.failed} exits 1, kills: {kills}\n")
        sys.stdout.flush()
    total = sum(chaos.kills.values())
    return (
        f"seed {chosen.seed}: {jobs} jobs of {chosen.rows} rows, {total} kills ({kills}): no row lost, none twice, "
        "every manifest proved, every value that of the undisturbed run"
    )


if __name__ == "__main__":
    main()
