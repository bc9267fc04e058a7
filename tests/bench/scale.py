"""What each part costs a run beside its encoding, measured with an encoder that does nothing.

python -m tests.bench.scale --parts 100 1000 10000 100000 [--alone]

Every part holds one row, so reading, the engine and the store's metadata are all that is left. Small parts travel
through Ray together; with --alone each is a block of its own, as a part of many rows is. Prints a table; the figures of
parts alone are what tests/bench/simulate.py starts from.
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

import varve.engine.dataflow
from varve.cli.command import ENVIRONMENT
from varve.cli.corpus import model_folder
from varve.cluster.connection import start_ray
from varve.cluster.placement import settle
from varve.config.job import Job
from varve.engine.dataflow import run_dataflow
from varve.monitoring.run_counters import Block
from varve.output import manifest
from varve.planning.saved_plan import prepare, save_plan
from varve.process_state import silence_datasets, silence_transformers
from varve.storage.object_store import Storage
from varve.workers.part_message import PartMessage, pack_message, unpack_message

_SHARDS = 10


class Idle:
    """A replica whose features are all null."""

    def __init__(self, work, tell) -> None:
        self._schema, self._tell = work.schema, tell
        tell.join({})

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = unpack_message(batch)
        rows = part.rows
        self._tell.begin("encode", rows)
        known = {
            "shard": pa.array([rows.shard] * rows.num_rows, pa.int32()),
            "row": pa.array(range(rows.start, rows.stop), pa.int64()),
        }
        columns = [known.get(field.name, pa.nulls(rows.num_rows, field.type)) for field in self._schema]
        self._tell.count(Block(rows.num_rows, rows.num_rows, 0), rows, wait=False)
        self._tell.end("encode", rows)
        return pack_message(PartMessage(rows, pa.table(columns, schema=self._schema)))


def measure(parts: int, folder: Path) -> dict[str, float]:
    """Seconds and bytes of a run of so many parts."""
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
    _, layout = settle(job.compute)
    storage = Storage(str(folder / "out"))
    plan = prepare(job, storage, device="cpu")
    save_plan(plan, storage)
    lacking = manifest.missing({}, plan.resolved.num_shards, 1, storage.uri)
    before_mb, began, cpu = _memory_mb(), time.perf_counter(), time.process_time()
    with _memory_over_time() as over_time_mb:
        ran = run_dataflow(plan, storage, lacking, 0, layout)
    graph_s, driver_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    graph_mb = _memory_mb() - before_mb
    began = time.perf_counter()
    found = manifest.committed(storage)
    list_s = time.perf_counter() - began
    began = time.perf_counter()
    records = manifest.read_parts(storage, found, ())
    footers_s = time.perf_counter() - began
    made = len(ran.parts)
    assert made == len(records) == _SHARDS * (rows + 1)
    return {
        "parts": made,
        "graph_s": graph_s,
        "driver_ms_per_part": 1000 * driver_cpu_s / made,
        "wall_ms_per_part": 1000 * graph_s / made,
        "list_us_per_part": 1e6 * list_s / made,
        "footer_us_per_part": 1e6 * footers_s / made,
        "before_mb": before_mb,
        "mb_at_a_tenth": over_time_mb[len(over_time_mb) // 10],
        "mb_at_half": over_time_mb[len(over_time_mb) // 2],
        "mb_at_the_end": over_time_mb[-1],
        "footers_mb": _memory_mb() - before_mb - graph_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


@contextmanager
def _memory_over_time() -> Iterator[list[float]]:
    """The driver's memory, looked at every second."""
    seen, over = [_memory_mb()], Event()

    def look() -> None:
        while not over.wait(1.0):
            seen.append(_memory_mb())

    thread = Thread(target=look)
    thread.start()
    yield seen
    over.set()
    thread.join()


def _memory_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--alone", action="store_true", help="a block for each part")
    chosen = parser.parse_args()
    os.environ.update({**ENVIRONMENT, "HF_HUB_OFFLINE": "1"})
    silence_transformers()
    silence_datasets()
    start_ray(Job.model_fields["compute"].default)
    # A class of this file is sent to the workers as it is.
    varve.engine.dataflow.Replica = Idle  # type: ignore[misc]
    if chosen.alone:
        varve.engine.dataflow.TOGETHER_BYTES = 1
    names: list[str] = []
    for parts in chosen.parts:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(parts, Path(folder))
        if not names:
            names = list(figures)
            sys.stdout.write(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n")
        sys.stdout.write(f"| {' | '.join(f'{figures[name]:,.1f}' for name in names)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
