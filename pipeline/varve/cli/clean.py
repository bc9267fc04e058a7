"""`varve clean PATH`: sweep what broken uploads have left; only tells, unless told to delete."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from varve.cli.command import print_json, run
from varve.errors import JobError
from varve.monitoring.progress_line import clock_time, data_size
from varve.output import part_file
from varve.output.manifest import JOB_NAME
from varve.storage.object_store import Storage
from varve.storage.stale_uploads import Leftover, find_leftovers

_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("clean", "Sweep what broken uploads have left. Committed parts stay.", _add, _clean, argv)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the job's output.path")
    parser.add_argument("--delete", action="store_true", help="remove them; without it they are only listed")
    parser.add_argument(
        "--older-than",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="leave alone what was begun later: a run may be at work on it (default: 24)",
    )


def _clean(arguments: argparse.Namespace) -> int:
    storage = Storage(arguments.path, patient=False)
    if arguments.older_than < 0:
        msg = f"--older-than: {arguments.older_than} is not allowed: expected hours, 0 or more"
        raise JobError(msg)
    if storage.read(JOB_NAME) is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    now = datetime.now(UTC)
    found = list(find_leftovers(storage))
    old = [leftover for leftover in found if now - leftover.begun_at >= timedelta(hours=arguments.older_than)]
    strangers = [f.name for f in storage.list(part_file.DATA_PREFIX) if part_file.parse_name(f.name) is None]
    if arguments.delete:
        for leftover in old:
            leftover.remove()
    if arguments.json:
        print_json(
            {
                "path": storage.uri,
                "leftovers": [_as_json(leftover, now) for leftover in old],
                "younger": len(found) - len(old),
                "deleted": arguments.delete,
                "strangers": strangers,
            }
        )
    else:
        _tell(old, len(found) - len(old), strangers, now, deleted=arguments.delete)
    return 0


def _as_json(leftover: Leftover, now: datetime) -> dict[str, object]:
    age_s = round((now - leftover.begun_at).total_seconds())
    return {"name": leftover.name, "bytes": leftover.size, "age_s": age_s}


def _tell(old: list[Leftover], younger: int, strangers: list[str], now: datetime, *, deleted: bool) -> None:
    for leftover in old[:_SHOWN]:
        age = clock_time((now - leftover.begun_at).total_seconds())
        sys.stdout.write(f"  staged file      {leftover.name}, {data_size(leftover.size)}, begun {age} ago\n")
    if len(old) > _SHOWN:
        sys.stdout.write(f"  and {len(old) - _SHOWN:,} more\n")
    for name in strangers[:_SHOWN]:
        sys.stdout.write(f"  left alone       {name}: no part of Varve\n")
    held = f"; {younger:,} younger left alone" if younger else ""
    if not old:
        sys.stdout.write(f"Nothing to sweep{held}.\n")
    elif deleted:
        sys.stdout.write(f"Removed {len(old):,} leftover(s){held}.\n")
    else:
        sys.stdout.write(f"{len(old):,} leftover(s){held}. Nothing was removed: say --delete.\n")
