"""Measures the exact search of generated vectors: seconds and memory, for one and two threads.

python -m tests.bench.search [--rows 1000000] [--width 384] [--dtype float32] [--queries 1 100] [--work WORK]

Each measurement has its own process. CPU time is that of all threads; memory is the growth of the peak from before the
output is opened. `read` is the CPU time to decode the vectors alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

_ROUNDS = 2
_ROWS_PER_PART = 50_000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--work", type=Path, help="folder that keeps the vectors (default: a temporary one)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        sys.stdout.write(json.dumps(measure(**json.loads(arguments.one))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = generate(arguments.work or Path(temporary), arguments.rows, arguments.width, arguments.dtype)
        for num_queries in arguments.queries:
            for threads in (1, 2):
                found = in_own_process(path=path, num_queries=num_queries, threads=threads)
                sys.stdout.write(
                    f"{arguments.dtype} {arguments.rows:,} x {arguments.width}, {num_queries} queries, {threads} "
                    f"threads: {found['wall_s']:.2f} s, CPU {found['cpu_s']:.2f} s (read {found['read_s']:.2f} s), "
                    f"+{found['megabytes']:.0f} MB\n"
                )
                sys.stdout.flush()


def generate(work: Path, rows: int, width: int, dtype: str) -> str:
    from tests.outputs import column, write_output

    path = work / f"{dtype}-{rows}x{width}"
    if not (path / "_varve/manifest.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        vectors = np.lib.format.open_memmap(work / "vectors.npy", "w+", np.float32, (rows, width))
        random = np.random.default_rng(0)
        for start in range(0, rows, _ROWS_PER_PART):
            block = random.normal(size=(min(_ROWS_PER_PART, rows - start), width)).astype(np.float32)
            vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        feature = column("embedding", width, pool="mean", dtype=dtype)
        write_output(path, {feature: vectors}, {"doc": np.arange(rows)}, rows_per_part=_ROWS_PER_PART)
        (work / "vectors.npy").unlink()
    return str(path)


def in_own_process(**options) -> dict[str, float]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = ["-m", "tests.bench.search", "--one", json.dumps(options)]
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def measure(path: str, num_queries: int, threads: int) -> dict[str, float]:
    import varve.retrieval.search  # noqa: F401 (its imports are no memory of the scan)
    from varve.indexing.source import IndexSource
    from varve.output.run_output import Output
    from varve.retrieval.exact_search import in_cores, search_exact

    spread = partial(in_cores, num_threads=threads)
    before = peak_megabytes()
    source = IndexSource.open(Output.open(path))
    queries = np.random.default_rng(1).normal(size=(num_queries, source.width)).astype(np.float32)
    wall_s, cpu_s = best_of(lambda: search_exact(source, queries, 10, spread))
    megabytes = peak_megabytes() - before
    _, read_s = best_of(lambda: list(spread(partial(read_part, source), range(source.num_parts))))
    return {"wall_s": wall_s, "cpu_s": cpu_s, "read_s": read_s, "megabytes": megabytes}


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def read_part(source, part: int) -> int:
    return sum(len(block) for _, block in source.blocks(part))


def best_of(work) -> tuple[float, float]:
    """(wall, CPU) seconds of the round with the least CPU time."""
    times = []
    for _ in range(_ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times, key=lambda pair: pair[1])


if __name__ == "__main__":
    main()
