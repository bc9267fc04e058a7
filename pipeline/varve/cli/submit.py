"""`varve submit JOB.yaml --to ADDRESS`: run a job on a Ray cluster, and follow it."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from varve.cli.cluster_client import add_cluster_arguments, connect, exit_code_of, hand_over
from varve.cli.command import print_json, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.config.job import Job
from varve.errors import JobError, RunError, one_line
from varve.monitoring.progress_line import MARK
from varve.output.manifest import JOB_NAME

if TYPE_CHECKING:
    from varve.storage.object_store import Storage
    from varve.submission.jobs_client import Head, Submission

_PLAIN_EVERY_S = 15.0


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code, that of the job where it waits for it."""
    return run("submit", "Run a job on a Ray cluster, and follow it.", _add, _submit, argv)


def _add(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_cluster_arguments(parser, required=True)
    parser.add_argument("--no-wait", action="store_true", help="submit and leave")
    parser.add_argument(
        "--logs", action="store_true", help="print what the job's last submission has put out, and leave"
    )


def _submit(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    head = connect(arguments.to)
    from varve.submission.jobs_client import name_of

    last, count = head.latest(name_of(job))
    if arguments.logs:
        return _logs(head, last, as_json=arguments.json)
    if last is not None and not last.is_over:
        sys.stderr.write(f"{last.id} is {last.status.lower()} already: attached\n")
        return _wait(head, last.id, job, arguments)
    if done := finished(job, last):
        if arguments.json:
            print_json({"submission_id": last and last.id, "path": job.output.path, "finished_before": True})
        else:
            sys.stdout.write(f"Nothing to do: {done}\n")
        return 0
    submission_id = f"{name_of(job)}-{count + 1}"
    hand_over(head, job, submission_id, "embed", with_code=not arguments.installed)
    sys.stderr.write(f"submitted as {submission_id} to {head.address}\n")
    return _wait(head, submission_id, job, arguments)


def finished(job: Job, last: "Submission | None") -> str | None:
    """That the job is done already and how that is known; None if it is not."""
    from varve.output.manifest import read_manifest
    from varve.storage.object_store import Storage
    from varve.submission.package import local_paths

    found, code = None, {}
    try:
        storage = Storage(job.output.path, patient=False)
        found, code = read_manifest(storage), _code_of_output(storage)
        is_seen = "output.path" not in local_paths(job)
    except (RunError, JobError):
        is_seen = False  # the store can be reached from the cluster only
    if found is not None and Job.parse(found.job).identity() == job.identity() and code == _code_of_job(job):
        return f"{found.path} is complete since {found.finished_at}."
    if last is not None and last.status == "SUCCEEDED" and not is_seen:
        return f"{last.id} has written {job.output.path}."
    return None


def _code_of_output(storage: "Storage") -> dict[str, str]:
    """What a run has recorded of the code of its functions: {"features.overlap.code": SHA-256, ...}."""
    try:
        return json.loads(storage.read(JOB_NAME) or b"{}").get("code", {}).get("identity", {})
    except ValueError:
        return {}


def _code_of_job(job: Job) -> dict[str, str]:
    """The same of the functions as they are here."""
    from varve.submission.package import job_code

    return {f"features.{name}.code": code.sha256 for name, code in zip(job.computed, job_code(job), strict=True)}


def _logs(head: "Head", last: "Submission | None", *, as_json: bool) -> int:
    if last is None:
        msg = f"{head.address} has no submission of this job"
        raise RunError(msg)
    logs = head.logs(last.id)
    if as_json:
        print_json({"submission_id": last.id, "status": last.status, "logs": logs})
    else:
        sys.stdout.write(logs)
    return 0


def _wait(head: "Head", submission_id: str, job: Job, arguments: argparse.Namespace) -> int:
    """Follow a submission to its end; returns its exit code, or 0 when left to itself."""
    ended = None
    try:
        if not arguments.no_wait:
            show(head.follow(submission_id))
            ended = head.find(submission_id)
    except KeyboardInterrupt:
        sys.stderr.write("\ndetached: the run goes on. The same command attaches again\n")
    exit_code = 0 if ended is None else exit_code_of(ended)
    if ended is not None and exit_code and ended.exit_code not in (1, 2):
        sys.stderr.write(f"varve submit: {submission_id} {ended.status.lower()}: {one_line(ended.message, 500)}\n")
    if arguments.json:
        status = ended.status if ended else "RUNNING"
        print_json({"submission_id": submission_id, "status": status, "exit_code": exit_code, "path": job.output.path})
    elif ended is None:
        sys.stderr.write(
            f"`varve status {job.output.path}` reads the output; `ray job stop {submission_id}` ends the run\n"
        )
    return exit_code


def show(chunks: Iterable[str]) -> None:
    """A driver's output on stderr: its progress as one live line on a terminal, elsewhere now and then."""
    terminal, shown_at, rest = sys.stderr.isatty(), 0.0, ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if line.startswith(MARK):
                if terminal or time.monotonic() - shown_at > _PLAIN_EVERY_S:
                    shown_at, told = time.monotonic(), line.removeprefix(MARK)
                    sys.stderr.write(f"\r\033[K{told}" if terminal else f"{told}\n")
            elif not _is_noise(line):
                sys.stderr.write(f"\r\033[K{line}\n" if terminal else f"{line}\n")
        sys.stderr.flush()
    if terminal:
        sys.stderr.write("\r\033[K")


def _is_noise(line: str) -> bool:
    """Ray's own lines in the driver's log."""
    return "\tINFO " in line[:40] or line.startswith("Running entrypoint for job ")
