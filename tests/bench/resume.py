"""What it takes to go on with a run of very many parts, or of very many shards.

python -m tests.bench.resume --parts 100000 --shards 10
python -m tests.bench.resume --parts 20000 --shards 10000

An output is laid down on Ceph's S3 gateway as a run would have left it, some parts short of whole; then `varve embed`
goes on with it. Every part holds one row of the same text, so laying down costs little.
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


def lay_down(job: Job, shards: int, rows_per_shard: int, gone: set[int]) -> Plan:
    """All parts of the job but those whose number is in `gone`."""
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
        for _ in threads.map(write, (n for n in range(shards * (rows_per_shard + 1)) if n not in gone)):
            pass
    return plan


TEXT = "varve"


def list_twice(plan: Plan) -> tuple[float, float]:
    """Seconds of the listing, one page after the other and in parallel."""
    storage, resolved, seconds = Storage(OUTPUT), plan.resolved, []
    cuts = manifest.splits(resolved.num_shards, resolved.rows_per_part, plan.dataset.shard_rows)
    for splits in ((), cuts):
        began = time.perf_counter()
        manifest.committed(storage, splits)
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def go_on(job_file: Path) -> tuple[float, float, str]:
    """(seconds, peak MB of the driver's own process, what it printed) of `varve embed`."""
    began, peak_kb = time.perf_counter(), 0
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
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    return time.perf_counter() - began, peak_kb / 1000, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--missing", type=int, default=20)
    chosen = parser.parse_args()
    rows_per_shard = chosen.parts // chosen.shards - 1
    with ExitStack() as running, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        endpoint = running.enter_context(radosgw(folder / "radosgw"))
        os.environ.update(s3_environment(endpoint), HF_HUB_OFFLINE="1")
        make_bucket(endpoint, "resume")
        (folder / "docs").mkdir()
        for shard in range(chosen.shards):
            pq.write_table(pa.table({"text": [TEXT] * rows_per_shard}), folder / f"docs/{shard:05d}.parquet")
        job_file = folder / "job.yaml"
        job_file.write_text(
            f"source: {{dataset: {folder / 'docs'}, text: text}}\nmodel: {{name: {model_folder()}, max_tokens: 16}}\n"
            f"output: {{path: '{OUTPUT}', rows_per_part: 1}}\n"
        )
        gone = set(random.Random(0).sample(range(chosen.parts), chosen.missing))
        began = time.perf_counter()
        plan = lay_down(Job.load(str(job_file)), chosen.shards, rows_per_shard, gone)
        sys.stdout.write(f"{chosen.parts:,} parts laid down in {time.perf_counter() - began:.0f} s\n")
        one_by_one, parallel = list_twice(plan)
        seconds, peak_mb, told = go_on(job_file)
        content = Storage(OUTPUT).read(manifest.MANIFEST_NAME) or b""
    sys.stdout.write(
        f"{told}\n| parts | shards | missing | listing one by one, in parallel | the whole command | driver's peak | "
        f"manifest |\n| --- | --- | --- | --- | --- | --- | --- |\n| {chosen.parts:,} | {chosen.shards:,} | "
        f"{chosen.missing} | {one_by_one:.1f} s, {parallel:.1f} s | {seconds:.0f} s | {peak_mb:,.0f} MB | "
        f"{len(content) / 1e6:.1f} MB |\n"
    )


if __name__ == "__main__":
    main()
