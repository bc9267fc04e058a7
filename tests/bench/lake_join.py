"""Measures what finding the changed rows of a table costs: hashes of texts, the join of all keys, bytes that are read.

python -m tests.bench.lake_join hash
python -m tests.bench.lake_join join --rows 30000000 --spread threads
python -m tests.bench.lake_join bytes

The tables are Parquet files with keys in random order and hashes, on disk; the join runs in a process of its own, which
reports its greatest memory. With Ray, the memory is that of the largest worker.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.lake_tables import MemoryFeatureTable, MemoryTable, features, write_features
from varve.backfill.diff import DiffRequest, select_rows
from varve.backfill.keys.bucket_join import BucketJoin
from varve.backfill.keys.key_buckets import count_buckets, write_buckets
from varve.backfill.keys.key_columns import Side
from varve.backfill.keys.selected_files import gather_files
from varve.engine.parallel import Spread, in_threads
from varve.lake.table import TableFile
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH, hash_texts
from varve.storage.object_store import Storage

FILES = 20
TEXT_BYTES = 620
CHANGED_EVERY = 100


@dataclass(frozen=True)
class ParquetFolder:
    """A table that is the Parquet files of a folder."""

    folder: str

    def files(self, version: int | None = None, key: str | None = None) -> list[TableFile]:  # noqa: ARG002
        paths = sorted(Path(self.folder).glob("*.parquet"))
        return [TableFile(str(path), str(path), pq.read_metadata(path).num_rows, path.stat().st_size) for path in paths]

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:  # noqa: ARG002
        with pq.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(16_384, columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])


def make(folder: Path, num_rows: int) -> None:
    """A source and a destination without every 50th key; each 100th text differs."""
    keys = np.random.default_rng(1).permutation(num_rows).astype(np.int64)
    for kind, order in (("source", keys), ("destination", keys[::-1])):
        (folder / kind).mkdir(parents=True)
        for number, chunk in enumerate(np.array_split(order, FILES)):
            mine = chunk if kind == "source" else chunk[chunk % 50 != 7]
            low = mine.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            if kind == "source":
                low = np.where(mine % CHANGED_EVERY == 3, ~low, low)
            content = np.stack([low, low >> np.uint64(7)], axis=1).tobytes()
            hashes = pa.Array.from_buffers(HASH_TYPE, len(mine), [None, pa.py_buffer(content)])
            table = pa.table({"doc_id": mine, TEXT_HASH: hashes})
            pq.write_table(table, folder / kind / f"{number:03d}.parquet", row_group_size=200_000, use_dictionary=False)


def measure_join(folder: Path, name: str) -> dict[str, Any]:
    """Join all keys of both tables, as when the old version of the source has expired."""
    peaks: list[int] = []
    spread = partial(_with_peaks, _spread(name), peaks)
    source, destination = ParquetFolder(str(folder / "source")), ParquetFolder(str(folder / "destination"))
    storage, files, kept = Storage(str(folder / "run")), source.files(), destination.files()
    start, cpu = time.perf_counter(), time.process_time()
    num_buckets, prefix = count_buckets([*files, *kept]), "_varve/diff/1/buckets"
    write = partial(write_buckets, num_buckets=num_buckets, storage=storage, prefix=prefix, spread=spread)
    side: Any = partial(Side, version=1, key="doc_id", has_hash=True)
    added = write(side("added", source, is_located=True), files)
    before = write(side("destination", destination), kept)
    written = time.perf_counter()
    join = BucketJoin(storage, "_varve/diff/1", prefix, added, None, before, "destination")
    joined = sorted(spread(join, range(num_buckets)), key=lambda each: each.bucket)
    compared = time.perf_counter()
    selected = gather_files(files, added.files, joined, storage, "_varve/diff/1", spread)
    seconds = time.perf_counter() - start
    num_rows = sum(file.num_rows or 0 for file in files)
    return {
        "rows": num_rows,
        "buckets": num_buckets,
        "spread": name,
        "seconds": round(seconds, 1),
        "distribute_s": round(written - start, 1),
        "join_s": round(compared - written, 1),
        "rows_per_s": round(num_rows / seconds),
        "rows_per_cpu_s": round(num_rows / (time.process_time() - cpu)) if name == "threads" else None,
        "selected": sum(file.num_rows or 0 for file in selected),
        "new": sum(each.counts["new"] for each in joined),
        "changed": sum(each.counts["changed"] for each in joined),
        "driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "worker_mb": max(peaks, default=0) // 1024,
    }


def _spread(name: str) -> Spread:
    if name == "threads":
        return in_threads
    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute
    from varve.engine.ray_tasks import spread

    start_ray(Compute())
    return spread


def _with_peaks(spread: Spread, peaks: list[int], work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    for result, peak in spread(partial(_measured, work), items):
        peaks.append(peak)
        yield result


def _measured(work: Callable[[Any], Any], item: Any) -> tuple[Any, int]:
    return work(item), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_hash(num_rows: int = 200_000) -> dict[str, Any]:
    """Microseconds a row on one core, the best of five."""
    letters = np.random.default_rng(0).integers(97, 123, num_rows * TEXT_BYTES, dtype=np.uint8).tobytes().decode()
    texts = pa.array([letters[at : at + TEXT_BYTES] for at in range(0, len(letters), TEXT_BYTES)])
    times = []
    for _ in range(5):
        start = time.process_time()
        hash_texts([texts])
        times.append(time.process_time() - start)
    return {"rows": num_rows, "text_bytes": TEXT_BYTES, "us_per_row": round(min(times) / num_rows * 1e6, 3)}


def measure_bytes(folder: Path, num_files: int = 100, rows_per_file: int = 500) -> dict[str, Any]:
    """Bytes of the source's columns that are read if one of its files changed."""
    source, destination = MemoryTable(), MemoryFeatureTable(str(folder))
    letters = np.random.default_rng(0).integers(97, 123, TEXT_BYTES * rows_per_file, dtype=np.uint8).tobytes().decode()
    body = pa.array([letters[at : at + TEXT_BYTES] for at in range(0, len(letters), TEXT_BYTES)])
    tables = {
        f"{at:03d}": pa.table({"doc_id": np.arange(at * rows_per_file, (at + 1) * rows_per_file), "body": body})
        for at in range(num_files)
    }
    old = source.change(adds=tables)
    rows = pa.concat_tables(tables.values())
    earlier = Storage(str(folder / "earlier"))
    head = destination.commit([write_features(earlier, "data/a.parquet", features(rows, "doc_id", ["body"]))])
    version = source.change(adds={"050": tables["050"].slice(1)})
    request = DiffRequest(source, version, old, destination, head, "doc_id", ("body",), "follow")
    counts = select_rows(request, Storage(str(folder / "run")), in_threads).counts
    widths = {"doc_id": 8, "body": TEXT_BYTES}
    read = sum(num_rows * widths[column] for (_, column), num_rows in source.reads.items())
    total = rows.num_rows * sum(widths.values())
    return {"files": num_files, "counts": dict(counts), "read_bytes": read, "share": round(read / total, 4)}


def _child(folder: Path, name: str) -> dict[str, Any]:
    """The join in a process of its own: the memory in which the tables were made does not count."""
    command = [sys.executable, "-m", "tests.bench.lake_join", "join", "--folder", str(folder), "--spread", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _report(figures: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(figures)}\n")


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hash", "join", "bytes"])
    parser.add_argument("--rows", type=int, default=30_000_000)
    parser.add_argument("--spread", choices=["threads", "ray"], default="threads")
    parser.add_argument("--folder", type=Path, help="with tables that were made before")
    arguments = parser.parse_args()
    if arguments.folder:
        _report(measure_join(arguments.folder, arguments.spread))
        return
    if arguments.what == "hash":
        _report(measure_hash())
        return
    with TemporaryDirectory() as made:
        folder = Path(made)
        if arguments.what == "bytes":
            _report(measure_bytes(folder))
            return
        make(folder, arguments.rows)
        _report(_child(folder, arguments.spread))


if __name__ == "__main__":
    main()
