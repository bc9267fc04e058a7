"""What `varve submit` and `varve plan --to` share: how a command reaches a cluster's head and gives it a job."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from varve.config.job import Job
from varve.errors import JobError

if TYPE_CHECKING:
    from varve.submission.jobs_client import Head, Submission


def add_cluster_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Where the cluster is, and what it has."""
    parser.add_argument("--to", required=required, metavar="ADDRESS", help="of the head's dashboard: http://HOST:8265")
    parser.add_argument(
        "--installed", action="store_true", help="the cluster has Varve installed: send the job file alone, no code"
    )


def connect(address: str) -> "Head":
    """The head at an address."""
    from varve.submission.jobs_client import Head

    return Head(address)


def hand_over(head: "Head", job: Job, submission_id: str, command: str, *options: str, with_code: bool) -> None:
    """Pack a job and have the cluster run a command of Varve's on it.

    Raises:
        JobError: the job names relative paths, which mean nothing there.
        RunError: the head refuses.
    """
    from varve.submission.package import JOB_FILE, START_FILE, packed

    if shared := shared_paths(job):
        sys.stderr.write(f"every node must have {', '.join(shared)}\n")
    with packed(job, with_code=with_code) as folder:
        head.submit(submission_id, folder, [START_FILE, command, JOB_FILE, *options])


def shared_paths(job: Job) -> list[str]:
    """The paths of a disk that a job names, which must be the same on every node.

    Raises:
        JobError: one is relative, which means another place there.
    """
    from varve.submission.package import local_paths

    local = local_paths(job)
    for key, path in local.items():
        if not Path(path.removeprefix("file://")).is_absolute():
            msg = (
                f"{key}: {path} is a relative path, which means another place on the cluster. Give a URL or a full path"
            )
            raise JobError(msg)
    return list(local.values())


def exit_code_of(ended: "Submission") -> int:
    """0 done, 2 where the job is wrong, else 1."""
    if ended.status == "SUCCEEDED":
        return 0
    return 2 if ended.exit_code == 2 else 1
