"""`varve submit JOB.yaml --to ADDRESS`: run a job on a Ray cluster, and follow it."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import add_job_arguments, print_json, read_job, run
from pipeline.errors import JobError, RunError
from pipeline.progress import MARK
from pipeline.spec.job import Job

if TYPE_CHECKING:
    from pipeline.storage.objects import Storage
    from pipeline.submission.head import Head, Submission

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


def add_cluster_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Where the cluster is, and what it has."""
    parser.add_argument("--to", required=required, metavar="ADDRESS", help="of the head's dashboard: http://HOST:8265")
    parser.add_argument(
        "--installed", action="store_true", help="the cluster has Varve installed: send the job file alone, no code"
    )


def _submit(arguments: argparse.Namespace) -> int:
    job = read_job(arguments)
    head = connect(arguments.to)
    from pipeline.submission.head import name_of

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


def connect(address: str) -> "Head":
    """The head at an address."""
    from pipeline.submission.head import Head

    return Head(address)


def finished(job: Job, last: "Submission | None") -> str | None:
    """That the job is done already and how that is known; None if it is not."""
    from pipeline.manifest import read_manifest
    from pipeline.storage.objects import Storage
    from pipeline.submission.package import local_paths

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
        return json.loads(storage.read("_varve/job.json") or b"{}").get("code", {}).get("identity", {})
    except ValueError:
        return {}


def _code_of_job(job: Job) -> dict[str, str]:
    """The same of the functions as they are here."""
    from pipeline.submission.package import job_code

    return {f"features.{name}.code": code.sha256 for name, code in zip(job.computed, job_code(job), strict=True)}


def hand_over(head: "Head", job: Job, submission_id: str, command: str, *options: str, with_code: bool) -> None:
    """Pack a job and have the cluster run a command of Varve's on it.

    Raises:
        JobError: the job names relative paths, which mean nothing there.
        RunError: the head refuses.
    """
    from pipeline.submission.package import JOB_FILE, START_FILE, packed

    if shared := shared_paths(job):
        sys.stderr.write(f"every node must have {', '.join(shared)}\n")
    with packed(job, with_code=with_code) as folder:
        head.submit(submission_id, folder, [START_FILE, command, JOB_FILE, *options])


def shared_paths(job: Job) -> list[str]:
    """The paths of a disk that a job names, which must be the same on every node.

    Raises:
        JobError: one is relative, which means another place there.
    """
    from pipeline.submission.package import local_paths

    local = local_paths(job)
    for key, path in local.items():
        if not Path(path.removeprefix("file://")).is_absolute():
            msg = (
                f"{key}: {path} is a relative path, which means another place on the cluster. Give a URL or a full path"
            )
            raise JobError(msg)
    return list(local.values())


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
        sys.stderr.write(
            f"varve submit: {submission_id} {ended.status.lower()}: {' '.join(ended.message.split())[:500]}\n"
        )
    if arguments.json:
        status = ended.status if ended else "RUNNING"
        print_json({"submission_id": submission_id, "status": status, "exit_code": exit_code, "path": job.output.path})
    elif ended is None:
        sys.stderr.write(
            f"`varve status {job.output.path}` reads the output; `ray job stop {submission_id}` ends the run\n"
        )
    return exit_code


def exit_code_of(ended: "Submission") -> int:
    """0 done, 2 where the job is wrong, else 1."""
    if ended.status == "SUCCEEDED":
        return 0
    return 2 if ended.exit_code == 2 else 1


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
