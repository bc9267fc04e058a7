"""`varve embed`: run a job to its published output, or go on with it where an earlier run stopped."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from varve.cli.command import add_job_arguments, print_json, read_job, run
from varve.monitoring.progress_line import clock_time, data_size
from varve.output.manifest import Manifest


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    describe = "Run a job, or go on with it where an earlier run stopped."
    return run("embed", describe, _add, _embed, argv, on_ray=True, goes_on=True)


def _add(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the job and print it with every default, without a look at the source, the model or the output",
    )


def _embed(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    if arguments.dry_run:
        content = job.model_dump(mode="json")
        if arguments.json:
            print_json(content)
        else:
            sys.stdout.write(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))
        return 0
    from varve.driver.embed import embed_in_own_process

    outcome = embed_in_own_process(job)
    manifest = outcome.manifest
    if arguments.json:
        print_json({**manifest.summary(), "finished_before": outcome.finished_before})
    elif outcome.finished_before:
        sys.stdout.write(f"Nothing to do: {manifest.path} is complete since {manifest.finished_at}.\n")
    else:
        sys.stdout.write(summary(manifest))
    return 0


def summary(manifest: Manifest) -> str:
    """The end of a run in a few lines."""
    canary = manifest.canary
    worst = max((figures["relative"] for figures in canary["features"].values()), default=0.0)
    encoder = manifest.encoder
    how = f"{encoder['device']}, {encoder['dtype']}, {encoder['layout']}" if encoder else "nothing was left to encode"
    errors = f", {manifest.num_errors:,} with an error" if manifest.num_errors else ""
    truncated = f", {manifest.num_truncated:,} truncated" if manifest.num_truncated else ""
    lines = {
        "rows": f"{manifest.num_rows:,}{errors}{truncated}{_happened(manifest.counts)}",
        "tokens": f"{manifest.num_tokens:,}",
        "output": f"{len(manifest.parts)} part(s), {data_size(manifest.file_bytes)}{_stored(manifest.storage)}",
        "time": _time(manifest),
        "encoder": how,
        "canary": f"{canary['rows']} rows against plain transformers: worst relative difference {worst:.1e}"
        + _functions(canary.get("computed", {})),
    }
    listed = "".join(f"  {name:<8} {text}\n" for name, text in lines.items())
    return f"Complete: {manifest.path}\n{listed}{_stages(manifest.stages)}"


def _functions(computed: Mapping[str, Any]) -> str:
    """Of computed columns; older manifests know none."""
    worst = max((figures["relative"] for figures in computed.values()), default=0.0)
    return f"; of Python functions, given these rows alone: {worst:.1e}" if computed else ""


def _happened(counts: Mapping[str, int]) -> str:
    told = {
        "repeats": "sequence(s) encoded once with an identical one",
        "overflows": "redone in bfloat16",
        "splits": "packs split for lack of memory",
        "killers": "killed their worker",
        "lost": "parts begun again after their worker died",
    }
    return "".join(f", {counts[name]:,} {what}" for name, what in told.items() if counts.get(name))


def _stored(storage: Mapping[str, Any]) -> str:
    repeated = f", {storage['retries']:,} request(s) made again" if storage["retries"] else ""
    return repeated + ("" if storage["create_if_absent"] else ", on a store without create-if-absent")


def _time(manifest: Manifest) -> str:
    seconds = manifest.seconds
    wall_s = sum(seconds[name] for name in ("ray", "imports", "plan", "graph", "check"))
    first_s = seconds["ray"] + seconds["imports"] + seconds["plan"] + seconds["first_block"]
    started = (
        f", the first block after {first_s:.0f} s (Ray {seconds['ray']:.1f}, imports {seconds['imports']:.1f} more, "
        f"plan {seconds['plan']:.1f}, replica {seconds['first_replica']:.1f})"
    )
    return clock_time(wall_s) + (started if seconds["first_block"] else "")


def _stages(stages: Mapping[str, Any]) -> str:
    """How busy each stage was, as a table."""
    if not stages:
        return ""
    rows = "".join(
        f"    {name:<9} {stage['busy']:>5.0%} {stage['work_s']:>10,.1f} {stage['at_once']:>8}\n"
        for name, stage in stages.items()
        if name != "bottleneck"
    )
    return f"  stage        busy  seconds  at once\n{rows}  bottleneck {stages['bottleneck']}\n"
