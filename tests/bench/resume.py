"""Time and memory to resume a run with very many parts or shards.

python -m tests.bench.resume --parts 100000 --shards 10
python -m tests.bench.resume --parts 20000 --shards 10000

An output with some missing parts is written to Ceph's S3 gateway, as an interrupted run would leave it; then
`varve embed` resumes it. Every part has one row of the same text, so that writing the output takes little time.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.servers.stores import make_bucket, radosgw, s3_environment
from varve.cli.corpus import model_folder
from varve.config.job import Job
from varve.encoder.encoder import Encoder
from varve.output import manifest
from varve.output.part_file import write_part
from varve.planning.plan import Plan
from varve.planning.saved_plan import prepare, save_plan
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.ranges import Range
from varve.storage.object_store import Storage
from varve.workers.featurize import featurize

OUTPUT = "s3://resume/out"


def write_parts(job: Job, shards: int, rows_per_shard: int, omitted: set[int]) -> Plan:
    """Write all parts of the job except the ones with a number in `omitted`."""
    storage = Storage(OUTPUT)
    plan = prepare(job, storage, device="cpu")
    save_plan(plan, storage)
    encoder = Encoder(job.model, job.pooled, checkpoint=plan.checkpoint)
    source = pa.table({"text": [TEXT]})
    blocks = tokenize_blocks(encoder.tokenizer, source, ("text",), 1)
    row, _, _ = featurize(encoder, source, blocks, schema=plan.schema, shard=0, start=0, pairs=False)

    def write(number: int) -> None:
        shard, start = divmod(number, rows_per_shard + 1)
        rows = Range(shard, start, min(start + 1, rows_per_shard))
        columns = {"shard": pa.array([shard], pa.int32()), "row": pa.array([start], pa.int64())}
        table = pa.table([columns.get(name, row[name]) for name in row.column_names], schema=plan.schema)
        write_part(storage, rows, table.slice(0, rows.num_rows), plan.fingerprint)

    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(write, (n for n in range(shards * (rows_per_shard + 1)) if n not in omitted)):
            pass
    return plan


TEXT = "varve"


def list_twice(plan: Plan) -> tuple[float, float]:
    """Seconds of the listing: page by page, and in parallel."""
    storage, resolved, seconds = Storage(OUTPUT), plan.resolved, []
    cuts = manifest.splits(resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    for splits in ((), cuts):
        started = time.perf_counter()
        manifest.committed(storage, splits)
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def resume(job_file: Path) -> tuple[float, float, str]:
    """Run `varve embed`; returns (seconds, peak MB of the driver's process, its stdout)."""
    started, peak_kb = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "varve", "embed", str(job_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        peak_kb = max([peak_kb, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.2)
    output, log = process.communicate()
    assert process.returncode == 0, log
    return time.perf_counter() - started, peak_kb / 1000, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--missing", type=int, default=20)
    arguments = parser.parse_args()
    rows_per_shard = arguments.parts // arguments.shards - 1
    with ExitStack() as running, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        endpoint = running.enter_context(radosgw(folder / "radosgw"))
        os.environ.update(s3_environment(endpoint), HF_HUB_OFFLINE="1")
        make_bucket(endpoint, "resume")
        (folder / "docs").mkdir()
        for shard in range(arguments.shards):
            pq.write_table(pa.table({"text": [TEXT] * rows_per_shard}), folder / f"docs/{shard:05d}.parquet")
        job_file = folder / "job.yaml"
        job_file.write_text(
            f"source: {{dataset: {folder / 'docs'}, text: text}}\nmodel: {{name: {model_folder()}, max_tokens: 16}}\n"
            f"output: {{path: '{OUTPUT}', rows_per_part: 1}}\n"
        )
        omitted = set(random.Random(0).sample(range(arguments.parts), arguments.missing))
        started = time.perf_counter()
        plan = write_parts(Job.load(str(job_file)), arguments.shards, rows_per_shard, omitted)
        sys.stdout.write(f"{arguments.parts:,} parts written in {time.perf_counter() - started:.0f} s\n")
        by_page, parallel = list_twice(plan)
        seconds, peak_mb, output = resume(job_file)
        content = Storage(OUTPUT).read(manifest.MANIFEST_NAME) or b""
    sys.stdout.write(
        f"{output}\n| parts | shards | missing | listing by page, in parallel | whole command | driver's peak | "
        f"manifest |\n| --- | --- | --- | --- | --- | --- | --- |\n| {arguments.parts:,} | {arguments.shards:,} | "
        f"{arguments.missing} | {by_page:.1f} s, {parallel:.1f} s | {seconds:.0f} s | {peak_mb:,.0f} MB | "
        f"{len(content) / 1e6:.1f} MB |\n"
    )


if __name__ == "__main__":
    main()
