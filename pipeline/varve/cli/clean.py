"""`varve clean PATH`: list files of interrupted uploads, or delete them with --delete."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from varve.cli.command import print_json, run
from varve.errors import JobError
from varve.indexing.index_folder import INDEX_NAMES
from varve.indexing.record import REQUEST_NAME
from varve.monitoring.progress_line import clock_time, data_size
from varve.output import part_file
from varve.output.manifest import JOB_NAME
from varve.output.object_names import OBJECT_NAMES
from varve.storage.object_store import Storage
from varve.storage.stale_uploads import StaleUpload, find_stale_uploads

_MAX_SHOWN = 20
_S_PER_HOUR = 3600
_NAMES = re.compile(f"{OBJECT_NAMES.pattern}|{INDEX_NAMES.pattern}")
_DESCRIPTION = """List the staged files that interrupted uploads left in a local output or index, and delete them with
--delete. Committed parts are never touched. Object stores keep no such files."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("clean", _DESCRIPTION, _add_arguments, _clean, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output of a run, or folder of an index")
    parser.add_argument("--delete", action="store_true", help="delete the files (default: only list them)")
    parser.add_argument(
        "--older-than",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="skip younger files, which a run may still be writing (default: 24)",
    )


def _clean(arguments: argparse.Namespace) -> int:
    if not arguments.older_than >= 0:  # also NaN
        msg = f"--older-than: {arguments.older_than} is not allowed: expected hours, 0 or more"
        raise JobError(msg)
    storage = _open(arguments.path)
    now = datetime.now(UTC)
    found = list(find_stale_uploads(storage, _NAMES))
    old = [upload for upload in found if _age_s(upload, now) >= arguments.older_than * _S_PER_HOUR]
    unknown = [f.name for f in storage.list(part_file.DATA_PREFIX) if part_file.parse_name(f.name) is None]
    if arguments.delete:
        for upload in old:
            upload.remove()
    num_younger = len(found) - len(old)
    if arguments.json:
        print_json(
            {
                "path": storage.uri,
                "leftovers": [
                    {"name": upload.name, "bytes": upload.size, "age_s": round(_age_s(upload, now))} for upload in old
                ],
                "younger": num_younger,
                "deleted": arguments.delete,
                "strangers": unknown,
            }
        )
    else:
        _print(old, num_younger, unknown, now, deleted=arguments.delete)
    return 0


def _open(path: str) -> Storage:
    """An output or the folder of an index.

    Raises:
        JobError: the path is empty, or there is neither at it.
    """
    storage = Storage(path, patient=False)
    if all(storage.read(name) is None for name in (JOB_NAME, REQUEST_NAME)):
        msg = f"{storage.uri} holds no output of Varve, and no index"
        raise JobError(msg)
    return storage


def _age_s(upload: StaleUpload, now: datetime) -> float:
    return (now - upload.modified_at).total_seconds()


def _print(old: list[StaleUpload], num_younger: int, unknown: list[str], now: datetime, *, deleted: bool) -> None:
    for upload in old[:_MAX_SHOWN]:
        age = clock_time(_age_s(upload, now))
        sys.stdout.write(f"  staged file      {upload.name}, {data_size(upload.size)}, {age} old\n")
    if len(old) > _MAX_SHOWN:
        sys.stdout.write(f"  and {len(old) - _MAX_SHOWN:,} more\n")
    for name in unknown[:_MAX_SHOWN]:
        sys.stdout.write(f"  unknown file     {name}: not written by Varve, never deleted\n")
    younger = f"; {num_younger:,} younger file(s) skipped" if num_younger else ""
    if not old:
        sys.stdout.write(f"Nothing to delete{younger}.\n")
    elif deleted:
        sys.stdout.write(f"Deleted {len(old):,} file(s){younger}.\n")
    else:
        sys.stdout.write(f"{len(old):,} file(s) of interrupted uploads{younger}. Delete them with --delete.\n")
