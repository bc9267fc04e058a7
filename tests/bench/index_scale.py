"""Builds a large FAISS index of generated vectors by parts, in two processes, and measures time and memory.

python -m tests.bench.index_scale --rows 10000000 --width 384

The vectors of a part are made from its number, so no output of their size is needed, and no process holds them all.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from tests.outputs import column
from varve.config.index import Index
from varve.indexing.faiss.faiss_kind import FaissKind, num_lists
from varve.indexing.faiss.faiss_library import one_thread
from varve.indexing.faiss.faiss_target import FaissTarget
from varve.indexing.metric import Metric
from varve.indexing.neighbours import Neighbours, nearest
from varve.indexing.rows import POSITION, ROW, SHARD, IndexRows
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind

CLUSTERS, LATENT = 20_000, 48
BILLION = 10**9
LISTS_OF_BILLION = 2**17


@dataclass(frozen=True)
class GeneratedSource(IndexSource):
    """Vectors of length 1: clusters in a space of fewer dimensions, and noise."""

    @classmethod
    def of(cls, rows: int, width: int, rows_per_part: int) -> "GeneratedSource":
        starts = np.append(np.arange(0, rows, rows_per_part), rows).astype(np.int64)
        output: Any = None
        return cls(output, column("embedding", width), Metric("cosine", unit=True), (), starts)

    def read(self, part: int, columns=None) -> IndexRows:  # noqa: ARG002
        first, stop = int(self.starts[part]), int(self.starts[part + 1])
        positions = np.arange(first, stop)
        ids = {POSITION: positions, SHARD: np.zeros(stop - first, np.int32), ROW: positions}
        return IndexRows(part, first, vectors(part, stop - first, self.width), pa.table(ids))

    def blocks(self, part: int):
        rows = self.read(part)
        yield rows.first, rows.dense


def vectors(seed: int, rows: int, width: int) -> np.ndarray:
    """(rows, width) float32, a function of the arguments."""
    space = np.random.default_rng(0)
    centers = space.standard_normal((CLUSTERS, LATENT), np.float32)
    basis = space.standard_normal((LATENT, width), np.float32) / LATENT**0.5
    random = np.random.default_rng([1, seed])
    latent = centers[random.integers(0, CLUSTERS, rows)] + 0.6 * random.standard_normal((rows, LATENT), np.float32)
    found = latent @ basis + 0.3 * random.standard_normal((rows, width), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@contextmanager
def peak_of_anonymous_memory(peak: dict[str, int]):
    """Record the largest RssAnon of this process, in bytes, twenty times a second."""
    done = threading.Event()

    def sample() -> None:
        is_last = False
        while True:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak["anonymous"] = max(peak.get("anonymous", 0), int(status["RssAnon"].split()[0]) << 10)
            if is_last:
                return
            is_last = done.wait(0.05)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()


def measured(task: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a task; returns its result, and seconds, core-seconds and peak memory of this process."""
    peak: dict[str, int] = {}
    started, cpu = time.monotonic(), time.process_time()
    with peak_of_anonymous_memory(peak):
        result = task(*arguments)
    used = {"s": time.monotonic() - started, "core_s": time.process_time() - cpu}
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {**used, "peak_rss_mb": maximum / 1e6, "peak_anonymous_mb": peak["anonymous"] / 1e6, **result}


def train(target: FaissTarget, kind: Kind, source: GeneratedSource) -> dict[str, Any]:
    target.train(kind, source)
    return {}


def add(target: FaissTarget, kind: Kind, source: GeneratedSource, parts: list[int], num_queries: int) -> dict[str, Any]:
    """Add parts; the time of making the vectors and of the exact neighbours is separate."""
    asked = queries(source, num_queries)
    own = {"generate_core_s": 0.0, "exact_core_s": 0.0, "add_s": 0.0, "add_core_s": 0.0}
    found = [Neighbours.none(num_queries, 10)]
    for part in parts:
        cpu = time.process_time()
        rows = source.read(part)
        own["generate_core_s"] += time.process_time() - cpu
        started, cpu = time.monotonic(), time.process_time()
        target.add(kind, source, rows)
        own["add_s"] += time.monotonic() - started
        own["add_core_s"] += time.process_time() - cpu
        cpu = time.process_time()
        with one_thread():
            found = [Neighbours.merge([*found, nearest(asked, rows.dense, rows.first, 10, source.metric)])]
        own["exact_core_s"] += time.process_time() - cpu
    return {**own, "exact": found[0]}


def queries(source: GeneratedSource, num_queries: int) -> np.ndarray:
    """Vectors that are not in the index."""
    return vectors(source.num_parts, num_queries, source.width)


def finish(target: FaissTarget, kind: Kind, source: GeneratedSource, piece: int) -> dict[str, Any]:
    target.finish(kind, source, piece)
    return {}


def search(target: FaissTarget, kind: Kind, source: GeneratedSource, exact: Neighbours) -> dict[str, Any]:
    """Recall@10 and milliseconds of one query, of each setting."""
    asked, curve = queries(source, len(exact.positions)), []
    with target.searcher(kind, source) as searcher:
        for setting in kind.settings:
            searcher.search(asked, 10, setting)  # reads the lists from the disk
            started = time.monotonic()
            found = [searcher.search(asked[row : row + 1], 10, setting).positions[0] for row in range(len(asked))]
            took_ms = (time.monotonic() - started) * 1000 / len(asked)
            pairs = zip(found, exact.positions, strict=True)
            curve.append((dict(setting), np.mean([np.isin(e, f).mean() for f, e in pairs]).item(), took_ms))
    return {"curve": curve}


def assign(source: GeneratedSource, lists: int) -> dict[str, Any]:
    """Core-seconds to build a graph over centroids, and to find the nearest one of a vector."""
    with one_thread() as faiss:
        graph = faiss.IndexHNSWFlat(source.width, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = 64
        centroids = vectors(0, lists, source.width)
        cpu = time.process_time()
        graph.add(centroids)
        build_core_s, cpu = time.process_time() - cpu, time.process_time()
        graph.search(vectors(1, 20_000, source.width), 1)
        return {"lists": lists, "build_core_s": build_core_s, "vector_core_s": (time.process_time() - cpu) / 20_000}


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build and search; returns the figures of each stage."""
    source = GeneratedSource.of(arguments.rows, arguments.width, arguments.rows_per_part)
    name = arguments.kind or f"IVF{num_lists(arguments.rows)},SQ8"
    target = FaissTarget(str(folder), Index(path="generated", to=f"faiss:{folder}", kind=name))
    kind = FaissKind.parse(name).describe(source.width, source.num_vectors)
    figures: dict[str, Any] = {"rows": arguments.rows, "width": arguments.width, "kind": name, "processes": 2}
    with ExitStack() as stack:
        # A new process for each stage, so that its peak memory is its own.
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1))

        def stage(label: str, *tasks: tuple) -> list[Neighbours]:
            started = time.monotonic()
            results = pool.starmap(measured, tasks, chunksize=1)
            figures[label] = {"s": time.monotonic() - started, "processes": results}
            exact = [each.pop("exact") for each in results if "exact" in each]
            sys.stderr.write(f"{label}: {json.dumps(figures[label], default=float)}\n")
            return exact

        if arguments.assign:
            stage("assign", (assign, source, arguments.assign))
        stage("train", (train, target, kind, source))
        shares = [list(range(share, source.num_parts, 2)) for share in range(2)]
        exact = Neighbours.merge(
            stage("add", *((add, target, kind, source, share, arguments.queries) for share in shares))
        )
        stage("merge", *((finish, target, kind, source, piece) for piece in range(target.pieces(kind, source))))
        sizes = {p.name: p.stat().st_size for p in folder.rglob("finished/*")}
        figures["files"] = sizes
        figures["bytes_per_vector"] = {"formula": kind.bytes_per_vector, "file": sizes["index.faiss"] / arguments.rows}
        stage("search", (search, target, kind, source, exact))
    return figures


def extrapolate(figures: dict[str, Any]) -> dict[str, float]:
    """Core-hours of a billion rows, from the costs of one row; the lists are chosen by a graph over 2^17 centroids."""
    hour, rows = 3600, figures["rows"]
    added = sum(each["add_core_s"] for each in figures["add"]["processes"]) / rows
    merged = sum(each["core_s"] for each in figures["merge"]["processes"]) / rows
    found = {"add_as_measured": added * BILLION / hour, "merge": merged * BILLION / hour}
    if "assign" in figures:
        graph = figures["assign"]["processes"][0]
        sample = 2**32 // (4 * figures["width"])
        found["assign_by_graph"] = graph["vector_core_s"] * BILLION / hour
        found["train_by_graph"] = 10 * (graph["build_core_s"] + sample * graph["vector_core_s"]) / hour
    return {"index_tb": figures["bytes_per_vector"]["formula"] * BILLION / 1e12, **found}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows-per-part", type=int, default=50_000)
    parser.add_argument("--kind", help="of the index; by default IVF{4 √N},SQ8")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--assign", type=int, default=LISTS_OF_BILLION, help="centroids of the extrapolation; 0: none")
    parser.add_argument("--scratch", help="folder with 0.8 KB of free space per row at 384 dimensions")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=arguments.scratch) as folder:
        figures = run(arguments, Path(folder))
    figures["billion_rows_core_hours"] = extrapolate(figures)
    sys.stdout.write(json.dumps(figures, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
