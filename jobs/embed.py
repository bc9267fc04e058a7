"""`varve embed`: run a job to its published output, or go on with it where an earlier run stopped."""

import argparse
import sys
from collections.abc import Sequence

from jobs.command import add_job_arguments, print_json, read_job, run
from pipeline.manifest import Manifest
from pipeline.progress import clock_time, file_size
from pipeline.spec import Job


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("embed", "Run a job, or go on with it where an earlier run stopped.", add_job_arguments, _embed, argv)


def _embed(arguments: argparse.Namespace) -> int:
    manifest, finished_before = embed_with_progress(read_job(arguments))
    if arguments.json:
        print_json({**manifest.summary(), "finished_before": finished_before})
    elif finished_before:
        sys.stdout.write(f"Nothing to do: {manifest.path} is complete since {manifest.finished_at}.\n")
    else:
        sys.stdout.write(summary(manifest))
    return 0


def embed_with_progress(job: Job) -> tuple[Manifest, bool]:
    """Run a job and tell on stderr what it does; returns (manifest, whether it was finished already)."""
    from pipeline.driver import embed
    from pipeline.plan import Plan

    started: list[int] = []

    def on_start(plan: Plan, done_rows: int) -> None:
        started.append(done_rows)
        rows = plan.dataset.shard_rows
        told = f"{sum(rows):,} rows" if rows else "rows counted while reading"
        before = f", {done_rows:,} done before" if done_rows else ""
        sys.stderr.write(f"{plan.resolved.num_shards} shard(s), {told}{before} → {job.output.path}\n")

    manifest = embed(job, on_start=on_start)
    return manifest, not started


def summary(manifest: Manifest) -> str:
    """The end of a run in a few lines."""
    seconds, canary = manifest.seconds, manifest.canary
    wall_s = seconds["plan"] + seconds["graph"] + seconds["check"]
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("read", "tokenize", "encode", "write"))
    worst = max((figures["relative"] for figures in canary["features"].values()), default=0.0)
    encoder = manifest.encoder
    how = f"{encoder['device']}, {encoder['dtype']}, {encoder['layout']}" if encoder else "nothing was left to encode"
    errors = f", {manifest.num_errors:,} with an error" if manifest.num_errors else ""
    truncated = f", {manifest.num_truncated:,} truncated" if manifest.num_truncated else ""
    lines = {
        "rows": f"{manifest.num_rows:,}{errors}{truncated}",
        "tokens": f"{manifest.num_tokens:,}",
        "output": f"{len(manifest.parts)} part(s), {file_size(manifest.file_bytes)}",
        "time": f"{clock_time(wall_s)} (seconds of work: {stages})",
        "encoder": how,
        "canary": f"{canary['rows']} rows against plain transformers: worst relative difference {worst:.1e}",
    }
    listed = "".join(f"  {name:<8} {text}\n" for name, text in lines.items())
    return f"Complete: {manifest.path}\n{listed}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
