"""Cost of the path around the encoder: Parquet → tokens → packs → 384 floats per row → Parquet, stage by stage.

python -m tests.bench.feed [--rows 60000] [--threads 1] [--ray]

Runs mean@0 of MiniLM through the code of a replica and of the engine's reads and writes, twice: with the model's
embeddings, and with a forward pass that returns the same number of prepared floats. Prints CPU seconds of each stage,
summed over all threads, and tokens per CPU second. With --ray, also the whole job on Ray: CPU seconds of all processes.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from threading import Lock, local
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.bench import corpus
from varve.config.job import Job
from varve.encoder import encoder as encoding
from varve.encoder import pack_executor, results
from varve.encoder.encoder import Encoder
from varve.encoder.model.forward import Vectors
from varve.encoder.pending_call import PendingCall
from varve.monitoring.run_counters import RunCounters
from varve.output import manifest, part_file
from varve.planning.plan import Plan
from varve.planning.saved_plan import prepare
from varve.preprocessing import text_blocks
from varve.ranges import Range
from varve.storage.object_store import Storage
from varve.workers import featurize, replica
from varve.workers.part_message import PartMessage, pack_message, unpack_message

_SHARDS = 4
_CHARACTERS = 240  # of a text: 49 tokens on average
_MAX_TOKENS = 128
_WIDTH = 384
_KEY = ("mean", 0)
# Stage → the functions whose CPU time it is, without that of other stages within them.
_STAGES: dict[str, list[tuple[Any, str]]] = {
    "tokenize": [(text_blocks, "tokenize_block")],
    "equal texts": [(encoding, "find_distinct")],
    "pack": [(Encoder, "start")],
    "embed": [(pack_executor.PackExecutor, "_launch")],
    "results": [(results.Results, "store"), (PendingCall, "result")],
    "Arrow": [(featurize._BlockQueue, "_complete")],  # noqa: SLF001 (there is no public function)
}


class _LocalReporter:
    """Reports to counters in this process."""

    def __init__(self) -> None:
        self._counters = RunCounters()
        self.begin, self.end = self._counters.begin, self._counters.end
        self.spend, self.stopped = self._counters.spend, self._counters.stopped

    def join(self, encoder: dict[str, Any]) -> None:
        self._counters.join(encoder, "replica", "127.0.0.1")

    def count(self, block: Any, part: Range, *, wait: bool) -> Any:  # noqa: ARG002 (the answer is always available)
        return self._counters.add(block, part)


class Stopwatch:
    """CPU seconds of stages over all threads; a stage within another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock, self._thread = Lock(), local()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the CPU time of this thread to a stage."""
        outer, self._thread.inner_s = getattr(self._thread, "inner_s", 0.0), 0.0
        began = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - began
            with self._lock:
                self.seconds[stage] += spent - self._thread.inner_s
            self._thread.inner_s = outer + spent

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are measured."""

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(stage):
                return function(*args, **kwargs)

        return measured


def run_bare(plan: Plan, storage: Storage, threads: int, *, null: bool) -> tuple[dict[str, float], int]:
    """Run a job in this process, part after part; returns (stage → CPU seconds, tokens)."""
    watch, spec = Stopwatch(), plan.worker_spec("cpu", threads)
    with ExitStack() as patches:
        for stage, functions in _STAGES.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, watch.wrap(stage, getattr(owner, name))))
        encode = replica.Replica(spec, _LocalReporter())
        if null:
            floats = torch.from_numpy(np.random.default_rng(0).standard_normal((4096, _WIDTH), np.float32))
            forward = lambda pack: Vectors(pooled={_KEY: floats[: len(pack.windows)]})  # noqa: E731
            patches.enter_context(patch.object(encode._encoder._executor, "_forward", forward))  # noqa: SLF001
        encode(pack_message(PartMessage(Range(0, 0, 0), plan.dataset.schema.empty_table())))
        watch.seconds.clear()
        began_s = time.process_time()
        tokens = sum(_run_part(*part, plan, storage, encode, watch) for part in _read(plan, storage, watch))
        total_s = time.process_time() - began_s
    watch.seconds["other threads"] = total_s - sum(watch.seconds.values())
    return {**watch.seconds, "all": total_s}, tokens


def _read(plan: Plan, storage: Storage, watch: Stopwatch) -> Iterator[tuple[int, int, pa.Table]]:
    rows = plan.resolved.rows_per_part
    for shard, missing in manifest.missing({}, plan.resolved.num_shards, rows, storage.uri).items():
        parts = plan.dataset.read_parts(shard, rows, missing)
        while True:
            with watch.measure("read"):
                part = next(parts, None)
            if part is None:
                break
            yield shard, *part


def _run_part(
    shard: int, start: int, table: pa.Table, plan: Plan, storage: Storage, encode: Any, watch: Stopwatch
) -> int:
    with watch.measure("messages"):
        message = pack_message(PartMessage(Range(shard, start, start + len(table)), table))
    with watch.measure("replica"):
        packed = encode(message)
    with watch.measure("messages"):
        result = unpack_message(packed)
    with watch.measure("write"):
        part = part_file.write_part(storage, result.rows, result.table, plan.fingerprint, result.counts)
    return part.num_tokens


def make_plan(folder: Path, texts: list[str], name: str) -> tuple[Plan, Storage]:
    """The plan of a job over Parquet shards in `folder`."""
    source = folder / "docs"
    if not source.exists():
        source.mkdir()
        for shard in range(_SHARDS):
            rows = pa.table({"text": texts[shard::_SHARDS]})
            pq.write_table(rows, source / f"{shard}.parquet")
    content = {
        "source": {"dataset": str(source), "text": "text"},
        "model": {"name": str(corpus.make_model("minilm", folder, texts)), "max_tokens": _MAX_TOKENS},
        "features": {"embedding": {"pool": "mean", "layers": 0}},
        "output": {"path": str(folder / name)},
    }
    storage = Storage(str(folder / name))
    return prepare(Job.parse(content), storage, device="cpu"), storage


def run_on_ray(plan: Plan) -> float:
    """Run the whole job; returns the CPU seconds of this process and all that it started."""
    from varve import embed

    before_s = _cpu_s()
    embed(plan.job)
    return _cpu_s() - before_s


def _cpu_s() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    """Run the measurement and print its table."""
    parser = argparse.ArgumentParser(description="Measures the path around the encoder.")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    arguments = parser.parse_args()
    texts = [text[:_CHARACTERS] for text in corpus.docstrings(arguments.rows)]
    with tempfile.TemporaryDirectory() as name:
        for turn in range(arguments.rounds):
            for kind in ("null", "mean@0"):
                plan, storage = make_plan(Path(name), texts, f"{kind}-{turn}")
                seconds, tokens = run_bare(plan, storage, arguments.threads, null=kind == "null")
                _print(kind, seconds, tokens)
                if arguments.ray and turn == arguments.rounds - 1 and kind == "mean@0":
                    _print("mean@0 on Ray", {"all": run_on_ray(make_plan(Path(name), texts, "ray")[0])}, tokens)


def _print(title: str, seconds: dict[str, float], tokens: int) -> None:
    stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items())
    rate = tokens / seconds["all"] / 1e6
    sys.stdout.write(f"{title}: {tokens / 1e6:.2f} M tokens; CPU s: {stages}; {rate:.2f} M tokens/s per core\n")


if __name__ == "__main__":
    main()
