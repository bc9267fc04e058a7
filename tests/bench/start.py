"""The start of a small job: `varve embed` and a plain sentence-transformers script, files to files, in turns.

python -m tests.bench.start [--texts 64] [--rounds 3]

Prints the medians of both, and for the last run of Varve when its files appear and how long each of its processes lived
and computed. Processes are observed from outside; a poll takes one percent of a core.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import corpus
from tests.bench.worker import ROOT
from varve.output.manifest import JOB_NAME, MANIFEST_NAME

_POLL_S = 0.05
_SHOWN_S = 0.05  # processes that computed less are not listed
_SCRIPT = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

source, target, model = sys.argv[1:]
table = pq.read_table(source)
vectors = SentenceTransformer(model).encode(table["text"].to_pylist(), batch_size=32)
vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
pq.write_table(table.append_column("embedding", vectors), target + ".parquet")
"""


@dataclass
class Lived:
    """A process: seconds since the start of the command."""

    started_s: float
    title: str = ""
    ended_s: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Observed:
    """One run of a command."""

    seconds: float = 0.0
    files: dict[str, float] = field(default_factory=dict)  # event → seconds
    processes: dict[int, Lived] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(process.cpu_s for process in self.processes.values())


def observe(command: list[str], target: Path) -> Observed:
    """Run a command and watch its processes and the files below its target.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    seen, begun, clock = Observed(), time.perf_counter(), time.time()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline")])}
    with target.with_suffix(".log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            _watch(seen, process.pid, clock)
            _find_files(seen, target, time.perf_counter() - begun)
            time.sleep(_POLL_S)
        seen.seconds = time.perf_counter() - begun
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, log.read()[-2000:])
    return seen


def _watch(seen: Observed, pid: int, clock: float) -> None:
    try:
        running = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in running:
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
            lived = seen.processes.setdefault(process.pid, Lived(process.create_time() - clock))
        except psutil.Error:
            continue
        lived.title, lived.ended_s = _shorten(title) or lived.title, time.time() - clock
        lived.cpu_s = times.user + times.system


def _shorten(title: str) -> str:
    """The names of a command's files, without folders and without options that hold paths."""
    return " ".join(Path(word).name for word in title.split()[:5])[:70]


def _find_files(seen: Observed, target: Path, now: float) -> None:
    events = {"planned": JOB_NAME, "first part": "**/*.parquet", "published": MANIFEST_NAME}
    for event, pattern in events.items():
        if event not in seen.files and target.is_dir() and next(target.glob(pattern), None):
            seen.files[event] = now


def _timeline(run: Observed) -> str:
    lines = [f"  {seconds:6.2f}  {event}" for event, seconds in run.files.items()]
    lines += [
        f"  {each.started_s:6.2f} to {each.ended_s:6.2f}  CPU {each.cpu_s:5.2f}  {each.title}"
        for each in sorted(run.processes.values(), key=lambda each: each.started_s)
        if each.cpu_s > _SHOWN_S
    ]
    return "\n".join(lines)


def main() -> None:
    """Run both commands in turns and print their medians."""
    parser = argparse.ArgumentParser(description="Measures the start of a small job.")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    runs: dict[str, list[Observed]] = {"varve embed": [], "sentence-transformers": []}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        texts = corpus.docstrings(arguments.texts)
        model = str(corpus.make_model("minilm", scratch, texts))
        source = scratch / "docs" / "0.parquet"
        source.parent.mkdir()
        pq.write_table(pa.table({"text": texts}), source)
        for turn in range(arguments.rounds):
            target = scratch / f"output-{turn}"
            job = ["--dataset", str(source.parent), "--text", "text", "--model", model, "--output", str(target)]
            runs["varve embed"].append(observe([sys.executable, "-P", "-m", "varve", "embed", *job], target))
            script = [sys.executable, "-c", _SCRIPT, str(source), str(target), model]
            runs["sentence-transformers"].append(observe(script, scratch / f"script-{turn}"))
    for name, series in runs.items():
        seconds, cpu_s = statistics.median(r.seconds for r in series), statistics.median(r.cpu_s for r in series)
        sys.stdout.write(f"{name:22} {seconds:6.2f} s, CPU {cpu_s:6.2f} s (medians of {len(series)})\n")
    sys.stdout.write(_timeline(runs["varve embed"][-1]) + "\n")


if __name__ == "__main__":
    main()
