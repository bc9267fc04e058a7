"""Kill drivers and workers of index builds at random, with a store that fails; compare with an undisturbed build.

python -m tests.faults.index_chaos --to faiss --seeds 20

The builds run on a Ray cluster on this machine and write to an S3 gateway behind a proxy that answers 15 % of the
requests with 503, resets 8 % of the connections and loses 10 % of the answers; pgvector writes to a PostgreSQL that is
killed and restarted too. A build is started again until it is published; then its files are compared byte for byte, or
its rows one by one, with those of the undisturbed build.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.faults.chaos import working
from tests.index_sources import clustered
from tests.outputs import column, write_output
from tests.servers.proxy import proxy
from tests.servers.stores import make_bucket, radosgw, s3_environment
from varve.indexing.open_target import find_index
from varve.storage.object_store import Storage

FAULTS = {"slow_down": 0.15, "reset": 0.08, "lost": 0.1}
KINDS = {
    "faiss": ("IVF64,SQ8", "HNSW16,SQ8", "Flat"),
    "postgresql": ("hnsw",),
    "qdrant": ("hnsw",),
    "usearch": ("f32",),
}
BYTE_EQUAL = ("npy", "fbin", "faiss", "ndjson")
ROWS, WIDTH, ROWS_PER_PART = 12_000, 48, 300
ERRORS = (7, 4001, 4002)
MAX_STARTS = 40


def write_run(folder: Path) -> str:
    kept = {"doc_id": [f"doc-{row}" for row in range(ROWS)]}
    features = {column("embedding", WIDTH, normalize=True): clustered(ROWS, WIDTH)}
    shards = [4000, 0, ROWS - 4000]
    return write_output(folder, features, kept, rows_per_part=ROWS_PER_PART, shards=shards, errors=ERRORS)


def command(run: str, to: str, kind: str | None) -> list[str]:
    options = ["--key", "doc_id", "--recall", "0.5", *(["--kind", kind] if kind else [])]
    return [sys.executable, "-m", "varve", "index", run, "--to", to, *options]


class Chaos:
    """Starts a build until it is published, and kills parts of it."""

    def __init__(self, draw: random.Random, folder: Path, kill_server: Callable[[], None] | None) -> None:
        self.draw, self.folder, self.kill_server = draw, folder, kill_server
        self.kills: Counter[str] = Counter()

    def build(self, argv: list[str], environment: dict[str, str], pause_s: float) -> None:
        log = (self.folder / "drivers.log").open("ab")
        for start in range(MAX_STARTS):
            driver = subprocess.Popen(argv, stdout=log, stderr=log, env=environment, start_new_session=True)
            while driver.poll() is None:
                try:
                    driver.wait(timeout=self.draw.expovariate(1 / pause_s) + (2.0 if start < 3 else 4.0))
                except subprocess.TimeoutExpired:
                    self._kill(driver)
            if driver.returncode == 0:
                return
            if driver.returncode not in {1, -signal.SIGKILL}:
                msg = f"exit code {driver.returncode}:\n{Path(log.name).read_text()[-4000:]}"
                raise AssertionError(msg)
        msg = f"not done after {MAX_STARTS} starts:\n{Path(log.name).read_text()[-4000:]}"
        raise AssertionError(msg)

    def _kill(self, driver: subprocess.Popen) -> None:
        what = self.draw.choice(["driver", "worker", "worker", *(["server"] if self.kill_server else [])])
        if what == "driver":
            driver.kill()
        elif what == "worker":
            workers = working()
            if not workers:
                return
            os.kill(self.draw.choice(workers), signal.SIGKILL)
        elif self.kill_server:
            self.kill_server()
        self.kills[what] += 1


def content(to: str) -> Any:
    """What a published index holds: hashes of its files, or all its rows in the order of their positions."""
    found = find_index(to)
    assert found is not None, f"{to} is not published"
    target = to.partition(":")[0]
    if target in BYTE_EQUAL:
        storage = Storage(to.partition(":")[2])
        names = {entry.name for entry in storage.list("")}
        staged = {name for name in names if name.startswith("_varve/staged")}
        assert not staged, staged
        files = names - {"_varve/manifest.json", "_varve/index.json", "_varve/check"}
        assert files == set(found.record.files), files ^ set(found.record.files)
        return {name: hashlib.sha256(storage.read(name) or b"").hexdigest() for name in sorted(files)}
    with found.open() as searcher:
        positions = np.arange(found.record.request.num_vectors)
        rows, vectors = searcher.rows(positions), searcher.dense_at(positions)
    assert not found.target.verify(found.record)
    return rows.select(["position", "shard", "row", "doc_id"]), vectors


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one == other
    (rows, vectors), (other_rows, other_vectors) = one, other
    assert isinstance(rows, pa.Table)
    return rows.equals(other_rows) and (vectors is None or np.array_equal(vectors, other_vectors))


@contextmanager
def places(target: str, folder: Path, running: ExitStack) -> Iterator[tuple[Callable[[str], str], Any]]:
    """((name) → address of an index, function that kills the server or None)."""
    if target == "postgresql":
        from tests.servers.postgres import postgres

        server = running.enter_context(postgres())
        database = server.create_database()
        yield (
            lambda name: f"postgresql://{server.destination(database, name)}",
            lambda: server.restart(signal.SIGQUIT),
        )
    elif target == "qdrant":
        from tests.servers.qdrant import qdrant

        server = running.enter_context(qdrant(folder / "qdrant"))
        yield lambda name: f"qdrant://{server.host}/{name}", lambda: (server.kill(), server.start())
    else:
        yield lambda name: f"{target}:s3://index/{name}", None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="faiss")
    parser.add_argument("--kind", help="default: several kinds of the target")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as running, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(RAY_BACKEND_LOG_LEVEL="fatal", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
        endpoint = running.enter_context(radosgw(folder / "radosgw"))
        control = running.enter_context(proxy(endpoint, folder))
        os.environ.update(s3_environment(endpoint))
        make_bucket(endpoint, "index")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        running.callback(cluster.shutdown)
        os.environ["RAY_ADDRESS"] = cluster.address
        run = write_run(folder / "run")
        place, kill_server = running.enter_context(places(arguments.to, folder, running))
        for kind in (arguments.kind,) if arguments.kind else KINDS.get(arguments.to, (None,)):
            test(arguments, run, kind, place, Chaos(random.Random(0), folder, kill_server), control)


def test(
    arguments: argparse.Namespace, run: str, kind: str | None, place: Callable[[str], str], chaos: Chaos, control: Any
) -> None:
    label = (kind or "exact").replace(",", "_").lower()
    undisturbed = place(f"undisturbed_{label}")
    started = time.monotonic()
    subprocess.run(command(run, undisturbed, kind), check=True, timeout=900)
    alone_s = time.monotonic() - started
    expected = content(undisturbed)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        chaos.draw = random.Random(seed)
        control.faults(**FAULTS, seed=seed)
        environment = {**os.environ, **s3_environment(control.endpoint)}
        address = place(f"seed_{seed}_{label}")
        chaos.build(command(run, address, kind), environment, alone_s / 3)
        assert equal(content(address), expected), f"{address} differs from the undisturbed build"
        kills = ", ".join(f"{count} {what}" for what, count in sorted(chaos.kills.items()))
        sys.stdout.write(f"{arguments.to} {kind or ''}: seed {seed}: equal; kills so far: {kills}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
