"""`varve submit JOB.yaml --to ADDRESS`: run a job on a Ray cluster, and follow its progress."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from varve.cli.cluster_client import add_cluster_arguments, exit_code_of, hand_over
from varve.cli.command import print_json, run
from varve.cli.job_arguments import add_job_arguments, read_job
from varve.config.job import Job
from varve.errors import JobError, RunError, one_line
from varve.monitoring.progress_line import MARK
from varve.monitoring.terminal_line import CLEAR_LINE, update_line

if TYPE_CHECKING:
    from varve.storage.object_store import Storage
    from varve.submission.jobs_client import ClusterHead, Submission

_PLAIN_EVERY_S = 15.0
_DESCRIPTION = """Run a job on a Ray cluster, and follow its progress. Ctrl-C only detaches: the run continues, and the
same command attaches to it again. A finished job is not run again. The exit code is that of the job."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code of the job if it waits for the job."""
    return run("submit", _DESCRIPTION, _add_arguments, _submit, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_cluster_arguments(parser, required=True)
    parser.add_argument("--no-wait", action="store_true", help="submit the job and exit")
    parser.add_argument("--logs", action="store_true", help="print the output of the job's last submission and exit")


def _submit(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    from varve.submission.jobs_client import ClusterHead, submission_name

    head = ClusterHead(arguments.cluster)
    last, count = head.latest(submission_name(job))
    if arguments.logs:
        return _print_logs(head, last, as_json=arguments.json)
    if last is not None and not last.is_over:
        sys.stderr.write(f"attached to {last.id}, which is already {last.status.lower()}\n")
        return _wait(head, last.id, job, arguments)
    if reason := finished(job, last):
        if arguments.json:
            print_json({"submission_id": last and last.id, "path": job.output.root, "finished_before": True})
        else:
            sys.stdout.write(f"Nothing to do: {reason}\n")
        return 0
    submission_id = f"{submission_name(job)}-{count + 1}"
    hand_over(head, job, submission_id, "embed", with_code=not arguments.installed)
    sys.stderr.write(f"submitted as {submission_id} to {head.address}\n")
    return _wait(head, submission_id, job, arguments)


def finished(job: Job, last: "Submission | None") -> str | None:
    """Return how it is known that a job is finished; None if it is not.

    Args:
        job: the job.
        last: its last submission, if any.

    A job with a table is never finished: its source may have changed, which the run finds out.
    """
    if job.output.table:
        return None
    from varve.output.manifest import MANIFEST_NAME, read_manifest
    from varve.storage.object_store import Storage
    from varve.submission.package import local_paths

    manifest, code = None, {}
    try:
        storage = Storage(job.output.root, patient=False)
        manifest = read_manifest(storage)
        code = _saved_code(storage) if manifest else {}
        is_readable = "output.path" not in local_paths(job)
    except (RunError, JobError):
        is_readable = False  # only the cluster can reach the store
    finished = Job.reopen(manifest.job, MANIFEST_NAME).identity() if manifest else None
    if manifest and finished == job.identity() and code == _present_code(job):
        return f"{manifest.path} is complete since {manifest.finished_at}."
    if last is not None and last.status == "SUCCEEDED" and not is_readable:
        return f"{last.id} has written {job.output.root}."
    return None


def _saved_code(storage: "Storage") -> dict[str, str]:
    """Return the identity of the functions that the run used: {"features.overlap.code": SHA-256, ...}."""
    from varve.planning.saved_job import read_job

    return (read_job(storage) or {}).get("code", {}).get("identity", {})


def _present_code(job: Job) -> dict[str, str]:
    """Return the identity of the functions as they are now."""
    from varve.planning.plan import code_identity
    from varve.preprocessing.computed_columns import find_computed

    return code_identity(find_computed(job.computed, job.folder))


def _print_logs(head: "ClusterHead", last: "Submission | None", *, as_json: bool) -> int:
    if last is None:
        msg = f"{head.address} has no submission of this job"
        raise RunError(msg)
    logs = head.logs(last.id)
    if as_json:
        print_json({"submission_id": last.id, "status": last.status, "logs": logs})
    else:
        sys.stdout.write(logs)
    return 0


def _wait(head: "ClusterHead", submission_id: str, job: Job, arguments: argparse.Namespace) -> int:
    """Follow a submission to its end, unless the user detaches; returns its exit code, or 0 if it still runs."""
    ended = None
    try:
        if not arguments.no_wait:
            show(head.follow(submission_id))
            ended = head.find(submission_id)
    except KeyboardInterrupt:
        sys.stderr.write("\ndetached: the run continues. The same command attaches to it again\n")
    exit_code = 0 if ended is None else exit_code_of(ended)
    if ended is not None and exit_code and ended.exit_code not in (1, 2):
        status = ended.status.lower()
        sys.stderr.write(f"varve submit: {submission_id} {status}: {one_line(ended.message, 500)}\n")
    if arguments.json:
        status = ended.status if ended else "RUNNING"
        print_json({"submission_id": submission_id, "status": status, "exit_code": exit_code, "path": job.output.root})
    elif ended is None:
        sys.stderr.write(
            f"`varve status {job.output.root}` shows how much is done; `ray job stop {submission_id}` stops the run\n"
        )
    return exit_code


def show(chunks: Iterable[str]) -> None:
    """Show a driver's output on stderr: its progress as one live line on a terminal, else every 15 seconds."""
    terminal, shown_at, rest = sys.stderr.isatty(), 0.0, ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if line.startswith(MARK):
                if terminal or time.monotonic() - shown_at > _PLAIN_EVERY_S:
                    shown_at, progress = time.monotonic(), line.removeprefix(MARK)
                    if terminal:
                        update_line(sys.stderr, progress)
                    else:
                        sys.stderr.write(f"{progress}\n")
            elif not _is_from_ray(line):
                sys.stderr.write(f"{CLEAR_LINE}{line}\n" if terminal else f"{line}\n")
        sys.stderr.flush()
    if terminal:
        sys.stderr.write(CLEAR_LINE)


def _is_from_ray(line: str) -> bool:
    """Whether Ray itself wrote a line of the driver's log."""
    return "\tINFO " in line[:40] or line.startswith("Running entrypoint for job ")
