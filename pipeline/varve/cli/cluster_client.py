"""What `varve submit` and `varve plan --to` share: the head of a Ray cluster, and handing a job to it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from varve.config.job import Job
from varve.errors import JobError

if TYPE_CHECKING:
    from varve.submission.jobs_client import ClusterHead, Submission


def add_cluster_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --to and --installed."""
    parser.add_argument(
        "--to",
        dest="cluster",
        required=required,
        metavar="ADDRESS",
        help="address of the cluster's dashboard: http://HOST:8265",
    )
    parser.add_argument(
        "--installed",
        action="store_true",
        help="Varve is installed on the cluster: do not send its code",
    )


def hand_over(head: "ClusterHead", job: Job, submission_id: str, command: str, *options: str, with_code: bool) -> None:
    """Send a job to a cluster, which runs a command of Varve on it.

    Raises:
        JobError: the job names relative paths, which are other files on the cluster.
        RunError: the head rejects the submission.
    """
    from varve.submission.package import JOB_FILE, START_FILE, package_folder

    if shared := shared_paths(job):
        sys.stderr.write(f"every node must have {', '.join(shared)}\n")
    with package_folder(job, with_code=with_code) as folder:
        head.submit(submission_id, folder, [START_FILE, command, JOB_FILE, *options])


def shared_paths(job: Job) -> list[str]:
    """Return the local paths that a job names, which must be the same files on every node.

    Raises:
        JobError: a path is relative.
    """
    from varve.submission.package import local_paths

    paths = local_paths(job)
    for key, path in paths.items():
        if not Path(path.removeprefix("file://")).is_absolute():
            msg = f"{key}: {path} is a relative path, which the cluster cannot find. Use a URL or an absolute path"
            raise JobError(msg)
    return list(paths.values())


def exit_code_of(ended: "Submission") -> int:
    """Return 0 if a submission succeeded, 2 if its job is wrong, else 1."""
    if ended.status == "SUCCEEDED":
        return 0
    return 2 if ended.exit_code == 2 else 1
