"""`varve embed`: run a job until its output is published, or resume it."""

import argparse
import logging
import sys
from collections.abc import Sequence

import yaml

from varve.cli.command import print_json, require_extra, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.cli.report_page import write_page
from varve.cli.run_summary import nothing_to_do, summary
from varve.config.job import Job
from varve.errors import VarveError, one_line

logger = logging.getLogger(__name__)

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
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html into the output when it is finished: see `varve report`",
    )


def _embed(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    if arguments.dry_run:
        _print_job(job, as_json=arguments.json)
        return 0
    if arguments.report:
        require_extra("jinja2", extra="report")
    from varve.driver.embed import embed_in_own_process

    outcome = embed_in_own_process(job)
    manifest = outcome.manifest
    report = _write_report(manifest.path if job.output.table else job.output.root) if arguments.report else None
    if arguments.json:
        written = {"report": report} if arguments.report else {}
        print_json({**manifest.summary(), "finished_before": outcome.finished_before, **written})
        return 0
    sys.stdout.write(nothing_to_do(manifest) if outcome.finished_before else summary(manifest))
    if report:
        sys.stdout.write(f"Report: {report}\n")
    return 0


def _write_report(path: str) -> str | None:
    """The address of the report of a finished run; None if it could not be written, which is logged."""
    try:
        return write_page(path).address
    except VarveError as e:
        reason = one_line(e)
    except Exception as e:  # noqa: BLE001 (the run has finished: nothing of its report may fail it)
        reason = f"{type(e).__name__}: {one_line(e)}"
    logger.warning("the run has finished, but its report was not written: %s. Try `varve report %s`", reason, path)
    return None


def _print_job(job: Job, *, as_json: bool) -> None:
    content = job.model_dump(mode="json")
    if as_json:
        print_json(content)
    else:
        sys.stdout.write(yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True))
