"""Cost of a part without its encoding, measured with an encoder that does nothing.

python -m tests.bench.scale --parts 100 1000 10000 100000 [--alone]

Every part has one row, so that reading, the engine and the metadata of the store dominate. Ray puts several small parts
into one block; with --alone each part is one block, as a part of many rows is. Prints a table; tests/bench/simulate.py
needs the figures of --alone.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pyarrow.parquet as pq

import varve.engine.data_context
import varve.engine.dataflow
from varve.cli.command import ENVIRONMENT
from varve.cli.corpus import model_folder
from varve.cluster.connection import start_ray
from varve.cluster.placement import place_on_cluster
from varve.config.job import Job
from varve.engine.dataflow import run_dataflow
from varve.monitoring.block import Block
from varve.output import manifest
from varve.planning.saved_plan import prepare, save_plan
from varve.process_state import silence_datasets, silence_transformers
from varve.storage.object_store import Storage
from varve.workers.part_message import PartMessage, pack_message, unpack_message

_SHARDS = 10


class Idle:
    """A replica whose features are all null."""

    def __init__(self, spec, reporter) -> None:
        self._schema, self._reporter = spec.schema, reporter
        reporter.join({})

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = unpack_message(batch)
        rows = part.rows
        self._reporter.begin("encode", rows)
        known = {
            "shard": pa.array([rows.shard] * rows.num_rows, pa.int32()),
            "row": pa.array(range(rows.start, rows.stop), pa.int64()),
        }
        columns = [known.get(field.name, pa.nulls(rows.num_rows, field.type)) for field in self._schema]
        self._reporter.count(Block(rows.num_rows, rows.num_rows, 0), rows, wait=False)
        self._reporter.end("encode", rows)
        return pack_message(PartMessage(rows, pa.table(columns, schema=self._schema)))


def measure(parts: int, folder: Path) -> dict[str, float]:
    """Run a job of about `parts` parts; returns its seconds and bytes."""
    (folder / "docs").mkdir(parents=True)
    rows = max(1, parts // _SHARDS - 1)
    for shard in range(_SHARDS):
        pq.write_table(pa.table({"text": ["varve"] * rows}), folder / f"docs/{shard}.parquet")
    content = {
        "source": {"dataset": str(folder / "docs"), "text": "text"},
        "model": {"name": str(model_folder()), "max_tokens": 16},
        "output": {"path": str(folder / "out"), "rows_per_part": 1},
    }
    job = Job.parse(content)
    _, placement = place_on_cluster(job.compute)
    storage = Storage(str(folder / "out"))
    plan = prepare(job, storage, device="cpu")
    save_plan(plan, storage)
    missing = manifest.missing({}, plan.resolved.num_shards, 1, storage.uri)
    before_mb, started, cpu = _memory_mb(), time.perf_counter(), time.process_time()
    with _memory_over_time() as over_time_mb:
        result = run_dataflow(plan, storage, missing, 0, placement, progress=None)
    graph_s, driver_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    graph_mb = _memory_mb() - before_mb
    started = time.perf_counter()
    committed = manifest.committed(storage)
    list_s = time.perf_counter() - started
    started = time.perf_counter()
    records = manifest.read_parts(storage, committed, ())
    footers_s = time.perf_counter() - started
    num_parts = len(result.parts)
    assert num_parts == len(records) == _SHARDS * (rows + 1)
    return {
        "parts": num_parts,
        "graph_s": graph_s,
        "driver_ms_per_part": 1000 * driver_cpu_s / num_parts,
        "wall_ms_per_part": 1000 * graph_s / num_parts,
        "list_us_per_part": 1e6 * list_s / num_parts,
        "footer_us_per_part": 1e6 * footers_s / num_parts,
        "before_mb": before_mb,
        "mb_at_a_tenth": over_time_mb[len(over_time_mb) // 10],
        "mb_at_half": over_time_mb[len(over_time_mb) // 2],
        "mb_at_the_end": over_time_mb[-1],
        "footers_mb": _memory_mb() - before_mb - graph_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


@contextmanager
def _memory_over_time() -> Iterator[list[float]]:
    """The driver's memory in MB, measured every second."""
    sizes_mb, stopped = [_memory_mb()], Event()

    def measure_until_stopped() -> None:
        while not stopped.wait(1.0):
            sizes_mb.append(_memory_mb())

    thread = Thread(target=measure_until_stopped)
    thread.start()
    yield sizes_mb
    stopped.set()
    thread.join()


def _memory_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--alone", action="store_true", help="one block per part")
    arguments = parser.parse_args()
    os.environ.update({**ENVIRONMENT, "HF_HUB_OFFLINE": "1"})
    silence_transformers()
    silence_datasets()
    start_ray(Job.model_fields["compute"].default)
    # Ray sends classes of the main module to the workers by value.
    varve.engine.dataflow.Replica = Idle  # type: ignore[misc]
    if arguments.alone:
        varve.engine.data_context.OPTIONS["target_max_block_size"] = 1
    names: list[str] = []
    for parts in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(parts, Path(folder))
        if not names:
            names = list(figures)
            sys.stdout.write(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n")
        sys.stdout.write(f"| {' | '.join(f'{figures[name]:,.1f}' for name in names)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
