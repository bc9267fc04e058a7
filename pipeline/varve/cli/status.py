"""`varve status PATH`: how much of a job is done, from the listing of its output alone."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from varve.cli.command import print_json, run, to_address
from varve.config.table_address import is_table
from varve.monitoring.row_errors import list_reasons
from varve.output import manifest
from varve.output.feature_sets import list_sets, set_path
from varve.output.manifest import Manifest
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage

_MAX_SHOWN = 20
# Footers that are read for the counts of an unfinished output.
_MAX_FOOTERS = 1000
_DESCRIPTION = """Show how much of a job is done: committed rows and parts, and the rows that are missing. It reads only
the output, so it works from any machine while the job runs. Exit code 0 if the output is complete, else 1."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0 complete, 1 partial or absent."""
    return run("status", _DESCRIPTION, _add_arguments, _status, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output.path or output.table of the job")


def _status(arguments: argparse.Namespace) -> int:
    if is_table(arguments.path):
        return _table_status(arguments)
    status = read_status(Storage(arguments.path, patient=False))
    if arguments.json:
        print_json(status)
    else:
        sys.stdout.write(_text(status))
    return 0 if status["state"] == "complete" else 1


def _table_status(arguments: argparse.Namespace) -> int:
    from varve.backfill.table_status import read_table_status

    status = read_table_status(to_address(arguments.path))
    if arguments.json:
        print_json(status)
    else:
        sys.stdout.writelines(_table_line(each) for each in status["feature_sets"])
    return 0 if status["feature_sets"] and all(each["in_step"] for each in status["feature_sets"]) else 1


def _table_line(state: dict[str, Any]) -> str:
    begin = "Complete" if state["in_step"] else "Behind"
    newer = "" if state["in_step"] else f"; the source is at version {state['current_version']}: run the job again"
    return (
        f"{begin}: features {state['feature_set'][:12]} of version {state['source_version']} of {state['source']}"
        f"{newer}\n  last run {state['folder']}\n"
    )


def read_status(storage: Storage) -> dict[str, Any]:
    """Return {"state": "complete", "partial" or "absent", "rows", "parts", "missing", ...} of an output."""
    from varve.planning.saved_job import read_job

    stored = read_job(storage)
    if stored is None:
        return {"state": "absent", "path": storage.uri}
    finished = manifest.read_manifest(storage)
    resolved = stored["resolved"]
    num_shards, rows_per_part = resolved["num_shards"], resolved["rows_per_part"]
    splits = manifest.splits(num_shards, rows_per_part, stored["source"]["shards"]["rows"])
    committed = manifest.committed(storage, splits)
    missing = manifest.missing(committed, num_shards, rows_per_part, storage.uri)
    return {
        "state": "complete" if finished and not missing else "partial",
        "path": storage.uri,
        "fingerprint": stored["fingerprint"],
        "rows": sum(part.num_rows for parts in committed.values() for part in parts),
        **_count_errors(storage, committed, finished),
        "parts": sum(len(parts) for parts in committed.values()),
        "file_bytes": sum(size for parts in committed.values() for size in parts.values()),
        "shards": num_shards,
        "shards_done": num_shards - len(missing),
        "published": finished is not None,
        "sets": {name: read_status(Storage(set_path(storage.uri, name), patient=False)) for name in list_sets(storage)},
        "missing": [
            {"shard": shard, "rows": gap}
            for shard, lacks in missing.items()
            for gap in _gaps(lacks, committed.get(shard, {}), rows_per_part)
        ],
    }


def _count_errors(
    storage: Storage, committed: dict[int, dict[Range, int]], finished: Manifest | None
) -> dict[str, Any]:
    """Rows without features: from the manifest, or from the footers of the parts if these are not too many."""
    if finished is None and sum(map(len, committed.values())) > _MAX_FOOTERS:
        return {"null_texts": None, "failed": None, "reasons": {}}
    counted = finished or manifest.read_parts(storage, committed)
    return {
        "null_texts": counted.num_null_texts,
        "failed": counted.num_errors,
        "reasons": counted.error_reasons,
    }


def _gaps(lacks: Missing, committed: dict[Range, int], rows_per_part: int) -> list[list[int | None]]:
    """[first row, last row + 1] of each gap of a shard; None if the end of the shard is not known yet."""
    gaps: list[list[int | None]] = []
    for start in sorted(lacks.starts):
        if gaps and gaps[-1][1] == start:
            gaps[-1][1] = start + rows_per_part
        else:
            gaps.append([start, start + rows_per_part])
    if not lacks.end_known:
        gaps.append([max((part.stop for part in committed), default=0), None])
    return gaps


def _errors(status: dict[str, Any]) -> str:
    counts = {"null texts": status["null_texts"], "failed": status["failed"]}
    counted = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    reasons = f": {list_reasons(status['reasons'])}" if status["reasons"] else ""
    return f", {counted}{reasons}" if counted else ""


def _text(status: dict[str, Any]) -> str:
    if status["state"] == "absent":
        return f"Absent: {status['path']} holds no output of Varve.\n"
    lines = [
        f"{status['state'].capitalize()}: {status['path']}",
        f"  rows     {status['rows']:,} in {status['parts']:,} part(s){_errors(status)}",
        f"  shards   {status['shards_done']} of {status['shards']} done",
    ]
    for name, further in status["sets"].items():
        lines.append(f"  set      {name}: {further['state']}, {further['rows']:,} rows{_errors(further)}")
    for gap in status["missing"][:_MAX_SHOWN]:
        first, stop = gap["rows"]
        rows = f"rows {first:,} to the end" if stop is None else f"rows {first:,} to {stop - 1:,}"
        lines.append(f"  missing  shard {gap['shard']}: {rows}")
    if len(status["missing"]) > _MAX_SHOWN:
        lines.append(f"  missing  and {len(status['missing']) - _MAX_SHOWN:,} more ranges")
    if not status["missing"] and not status["published"]:
        lines.append("  all parts are committed; run the same `varve embed` again to check and publish them")
    return "\n".join(lines) + "\n"
