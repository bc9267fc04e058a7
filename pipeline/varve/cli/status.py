"""`varve status PATH`: how far the run of an output is, from its listing alone."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from varve.cli.command import print_json, run
from varve.output import manifest
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage

_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 complete, 1 partial or absent."""
    return run("status", "Say how far the run of an output is.", _add, _status, argv)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the job's output.path")


def _status(arguments: argparse.Namespace) -> int:
    report = look(Storage(arguments.path, patient=False))
    if arguments.json:
        print_json(report)
    else:
        sys.stdout.write(_text(report))
    return 0 if report["state"] == "complete" else 1


def look(storage: Storage) -> dict[str, Any]:
    """{"state", "rows", "parts", "missing", ...} of an output."""
    from varve.planning.saved_plan import read_job

    stored = read_job(storage)
    if stored is None:
        return {"state": "absent", "path": storage.uri}
    finished = manifest.read_manifest(storage)
    resolved = stored["resolved"]
    grid = (resolved["num_shards"], resolved["rows_per_part"])
    found = manifest.committed(storage, manifest.splits(*grid, stored["source"]["shards"]["rows"]))
    lacking = manifest.missing(found, *grid, storage.uri)
    report: dict[str, Any] = {
        "state": "complete" if finished and not lacking else "partial",
        "path": storage.uri,
        "fingerprint": stored["fingerprint"],
        "rows": sum(part.num_rows for parts in found.values() for part in parts),
        "parts": sum(len(parts) for parts in found.values()),
        "file_bytes": sum(size for parts in found.values() for size in parts.values()),
        "shards": resolved["num_shards"],
        "shards_done": resolved["num_shards"] - len(lacking),
        "published": finished is not None,
        "missing": [
            {"shard": shard, "rows": ranges}
            for shard, lacks in lacking.items()
            for ranges in _missing_rows(lacks, found.get(shard, {}), resolved["rows_per_part"])
        ],
    }
    return report


def _missing_rows(lacks: Missing, done: dict[Range, int], rows_per_part: int) -> list[list[int | None]]:
    """[first row, last row + 1] of each gap; None where the shard's end is not known yet."""
    gaps: list[list[int | None]] = []
    for start in sorted(lacks.starts):
        if gaps and gaps[-1][1] == start:
            gaps[-1][1] = start + rows_per_part
        else:
            gaps.append([start, start + rows_per_part])
    if not lacks.end_known:
        gaps.append([max((part.stop for part in done), default=0), None])
    return gaps


def _text(report: dict[str, Any]) -> str:
    if report["state"] == "absent":
        return f"Absent: {report['path']} holds no output of Varve.\n"
    lines = [
        f"{report['state'].capitalize()}: {report['path']}",
        f"  rows     {report['rows']:,} in {report['parts']:,} part(s)",
        f"  shards   {report['shards_done']} of {report['shards']} done",
    ]
    for gap in report["missing"][:_SHOWN]:
        first, stop = gap["rows"]
        rows = f"rows {first:,} and on" if stop is None else f"rows {first:,} to {stop - 1:,}"
        lines.append(f"  missing  shard {gap['shard']}: {rows}")
    if len(report["missing"]) > _SHOWN:
        lines.append(f"  missing  and {len(report['missing']) - _SHOWN:,} more ranges")
    if not report["missing"] and not report["published"]:
        lines.append("  all parts are there; the same `varve embed` proves and publishes them")
    return "\n".join(lines) + "\n"
