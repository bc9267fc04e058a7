"""Compares whole jobs with their peers: Parquet with texts → Parquet with vectors of MiniLM, one process per run.

python -m tests.bench.pipeline [--rows 20000] [--rounds 3] [--peers ...] [--python daft=PATH] [--out DIR]

Every flow runs over all rows and over one row per shard. The second run measures the start-up (imports, Ray, actors,
loading); the difference is the time apart from it. Every id must occur once in the output, and a sample of the vectors
is compared with eager float32 transformers, one text at a time. Peak memory is that of the started process, without
Ray's processes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.bench import corpus
from tests.bench.difference import ABSENT, Difference, compare
from tests.bench.flows import FLOWS, MAX_TOKENS
from tests.bench.peers import Setup
from tests.bench.report import document, save
from tests.bench.results import Comparison, Row
from tests.bench.variants import REFERENCE
from tests.bench.worker import ROOT, Remote

SHARDS = 4
CHECKED = 256
COSINE = 0.999999  # smallest cosine of an exact vector
START_UP, APART = "start-up", "apart from it"


def write_source(folder: Path, texts: list[str]) -> str:
    """Write shards with the columns id and text; returns the folder."""
    folder.mkdir()
    for shard in range(SHARDS):
        ids = range(shard, len(texts), SHARDS)
        rows = pa.table({"id": list(ids), "text": [texts[at] for at in ids]})
        pq.write_table(rows, folder / f"shard-{shard}.parquet")
    return str(folder)


def check(target: Path, rows: int, expected: dict[int, NDArray[np.float32]]) -> Difference:
    """Difference of a sample of vectors, scaled to unit length; infinite if the ids are not 0 to `rows` - 1."""
    files = sorted((target / "data" if (target / "data").is_dir() else target).rglob("*.parquet"))
    table = ds.dataset([str(file) for file in files]).to_table(columns=["id", "vector"]).sort_by("id")
    if table["id"].to_pylist() != list(range(rows)):
        return ABSENT
    vectors = np.array(table["vector"].take(list(expected)).to_pylist(), np.float32)
    return compare(_unit(vectors), _unit(np.stack(list(expected.values()))))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run_flow(name: str, source: str, target: Path, model: str, python: str) -> tuple[float, int]:
    """Run a flow in a new process; returns (seconds, peak bytes of that process).

    Raises:
        subprocess.CalledProcessError: the flow failed.
    """
    shutil.rmtree(target, ignore_errors=True)
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONPATH": str(ROOT),
    }
    command = [python, "-m", "tests.bench.flows", name, source, str(target), model]
    log = target.with_suffix(".log")
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, stdout=output, stderr=output)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, log.read_text()[-2000:])
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description="Compares whole jobs with their peers.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", help=f"beginnings of names; default: {', '.join(FLOWS)}")
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="Python interpreter for a peer")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        comparison = compare_flows(arguments, Path(name))
    save([comparison], arguments.out, "pipeline")
    sys.stdout.write(document([comparison]))


def compare_flows(arguments: argparse.Namespace, scratch: Path) -> Comparison:
    """Run the flows in interleaved rounds, and check each output."""
    texts = corpus.docstrings(arguments.rows)
    model = corpus.make_model("minilm", scratch, texts)
    tokenizer = corpus.load_tokenizer(model)
    tokens = sum(min(len(encoding), MAX_TOKENS) for encoding in tokenizer.encode_batch_fast(texts))
    title = f"files to files, minilm, docstrings, max_tokens {MAX_TOKENS}, {SHARDS} Parquet shards"
    comparison = Comparison(title, len(texts), tokens, [], unit="texts")
    sources = {len(texts): write_source(scratch / "all", texts), SHARDS: write_source(scratch / "few", texts[:SHARDS])}
    expected = reference(texts, model, scratch)
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    names = [name for name in FLOWS if arguments.peers is None or name.startswith(("varve", *arguments.peers))]
    rows = {name: Row(name, ours=name in {"varve", "encoder alone"}, whole=name != "encoder alone") for name in names}
    for turn in range(arguments.rounds):
        for name in [name for name in names if name not in comparison.left_out]:
            python = next((path for peer, path in pythons.items() if name.startswith(peer)), sys.executable)
            target, row = scratch / "output", rows[name]
            try:
                start_up, _ = run_flow(name, sources[SHARDS], target, str(model), python)
                seconds, peak = run_flow(name, sources[len(texts)], target, str(model), python)
            except subprocess.CalledProcessError as e:
                comparison.left_out[name] = (e.output.strip().splitlines() or [f"exit code {e.returncode}"])[-1]
                continue
            row.difference = check(target, len(texts), expected)
            row.exact = row.difference.cosine >= COSINE
            row.peak_bytes = max(row.peak_bytes, peak)
            row.seconds.append(seconds)
            for name_of_time, value in {START_UP: start_up, APART: seconds - start_up}.items():
                row.more.setdefault(name_of_time, []).append(value)
            _log(f"round {turn + 1}: {name}: {seconds:.1f} s, start-up {start_up:.1f}, {row.difference}")
    comparison.rows = [row for row in rows.values() if row.seconds]
    return comparison


def reference(texts: list[str], model: Path, scratch: Path) -> dict[int, NDArray[np.float32]]:
    """Row → mean of the last layer, for a sample spread over all rows."""
    rows = sorted({at * len(texts) // CHECKED for at in range(CHECKED)})
    session = Remote(REFERENCE, Setup(str(model), MAX_TOKENS, "cpu"), folder=scratch, env={})
    try:
        session.load()
        session.use([texts[row] for row in rows])
        session.run()
        vectors = session.vectors(range(len(rows))).reshape(len(rows), len(session.layers()), -1)[:, -1]
    finally:
        session.close()
    return dict(zip(rows, vectors, strict=True))


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
