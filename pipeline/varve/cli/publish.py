"""`varve publish PATH`: publish a finished folder output in a feature table."""

import argparse
import sys
from collections.abc import Sequence

from varve.cli.command import print_json, run, to_address
from varve.cli.run_summary import nothing_to_do, summary

_DESCRIPTION = """Publish a finished output, whose source is an Iceberg or Delta table, in a feature table: nothing is
encoded again, and one commit makes the rows visible. A later output of the same features publishes only the rows that
are new or have changed, and removes rows that left the source. `varve embed` with source.table and output.table
continues from there."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("publish", _DESCRIPTION, _add_arguments, _publish, argv, uses_ray=True, resumable=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output.path of the finished job")
    parser.add_argument(
        "--table", metavar="ADDRESS", required=True, help="feature table, created if absent: iceberg://... or delta+..."
    )
    parser.add_argument(
        "--key", metavar="COLUMN", required=True, help="kept column that identifies a row: unique and not null"
    )
    parser.add_argument(
        "--partition", choices=("source", "none"), default="source", help="of the table: as the source, or none"
    )
    parser.add_argument("--code", metavar="FOLDER", help="run the job's Python functions for the check, searched here")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the run's checkpoint"
    )


def _publish(arguments: argparse.Namespace) -> int:
    address = to_address(arguments.table)
    from varve.backfill.finished_output import open_finished
    from varve.driver.publish_output import publish_output
    from varve.engine.parallel import choose_spread
    from varve.planning.saved_plan import CodePermission
    from varve.process_state import silence_datasets, silence_transformers

    silence_transformers()
    silence_datasets()
    finished = open_finished(arguments.path, CodePermission(arguments.code, arguments.trust_remote_code))
    spread = choose_spread(finished.output.manifest)
    outcome = publish_output(finished, address, arguments.key, arguments.partition, spread)
    if arguments.json:
        print_json({**outcome.manifest.summary(), "finished_before": outcome.finished_before})
    else:
        sys.stdout.write((nothing_to_do if outcome.finished_before else summary)(outcome.manifest))
    return 0
