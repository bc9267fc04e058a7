"""`varve report PATH`: one HTML page about a finished output: its run, its texts, its vectors and what is in it."""

import argparse
import math
import sys
from collections.abc import Sequence

from varve.cli.command import print_json, require_extra, run
from varve.cli.report_page import summarize, write_page
from varve.errors import JobError

_MAX_SEED = 2**32 - 1
_DESCRIPTION = """Write one HTML page about a finished output, which needs no network: how the run went, its texts, its
vectors by layer, neighbours, near duplicates and a map. Reads the small columns of all rows, and a sample of the
vectors and texts."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("report", _DESCRIPTION, _add_arguments, _report, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output of a finished run")
    parser.add_argument("--output", metavar="FILE", help="where to write the page (default: report.html in PATH)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all samples (default: 0)")
    parser.add_argument("--color", metavar="COLUMN", help="kept column whose values color the map")
    parser.add_argument(
        "--price-per-hour", type=float, metavar="X", help="price of the run's machines, for its cost on the page"
    )


def _report(arguments: argparse.Namespace) -> int:
    require_extra("jinja2", extra="report")
    if not 0 <= arguments.seed <= _MAX_SEED:
        msg = f"--seed: {arguments.seed} is not allowed: expected 0 to {_MAX_SEED}"
        raise JobError(msg)
    price = arguments.price_per_hour
    if price is not None and not (math.isfinite(price) and price >= 0):
        msg = f"--price-per-hour: {price} is not allowed: expected a number of 0 or more"
        raise JobError(msg)
    written = write_page(
        arguments.path, file=arguments.output, seed=arguments.seed, color=arguments.color, price_per_hour=price
    )
    if arguments.json:
        print_json(summarize(written))
    else:
        sys.stdout.write(f"{written.headline}\nReport: {written.address}\n")
    return 0
