"""`varve embed`: run a job until its output is published, or resume it."""

import argparse
import sys
from collections.abc import Sequence

import yaml

from varve.cli.command import print_json, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.cli.run_summary import nothing_to_do, summary
from varve.config.job import Job

_DESCRIPTION = """Run a job: encode the texts of a dataset and write the features as Parquet files. An interrupted job
is resumed: committed parts stay. A finished job is not run again. Describe the job in a file, or with flags for the
common settings. It runs on this machine, or on the Ray cluster at RAY_ADDRESS if this variable is set."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("embed", _DESCRIPTION, _add_arguments, _embed, argv, uses_ray=True, resumable=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the job and print it with all defaults; read neither the source nor the model nor the output",
    )


def _embed(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    if arguments.dry_run:
        _print_job(job, as_json=arguments.json)
        return 0
    from varve.driver.embed import embed_in_own_process

    outcome = embed_in_own_process(job)
    manifest = outcome.manifest
    if arguments.json:
        print_json({**manifest.summary(), "finished_before": outcome.finished_before})
    elif outcome.finished_before:
        sys.stdout.write(nothing_to_do(manifest))
    else:
        sys.stdout.write(summary(manifest))
    return 0


def _print_job(job: Job, *, as_json: bool) -> None:
    content = job.model_dump(mode="json")
    if as_json:
        print_json(content)
    else:
        sys.stdout.write(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))
