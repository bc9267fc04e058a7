"""`varve predict MODEL PATH`: a probe's predictions for another run of the same features."""

import argparse
import re
import sys
from collections.abc import Sequence

from varve.cli.command import print_json, run
from varve.cli.probe import listed, require_extra
from varve.errors import JobError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("predict", "Lay a probe's predictions beside the parts of a run.", _add, _predict, argv, goes_on=True)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the --output of `varve probe`, or its folder model")
    parser.add_argument("path", metavar="PATH", help="the output of a finished run with the same features")
    parser.add_argument("--name", help="of the folder below PATH/predictions; default: the label's name")
    parser.add_argument("--keep", default="", metavar="A,B,...", help="columns of the run to carry along")


def _predict(arguments: argparse.Namespace) -> int:
    require_extra("scipy")
    from varve.probe.data.run_output import Output
    from varve.probe.predictions import predict
    from varve.probe.saved_probe import Probe

    probe = Probe.load(arguments.model)
    name = arguments.name or re.sub(r"[^A-Za-z0-9._-]+", "-", probe.label).strip("-.") or "label"
    if not _NAME.fullmatch(name):
        msg = f"--name: {name!r} is not allowed: expected letters, digits, dots, - and _"
        raise JobError(msg)
    keep = listed(arguments.keep)
    done = predict(probe, Output.open(arguments.path), name, keep=keep, on_part=_show)
    if arguments.json:
        fields = ("path", "num_rows", "num_errors", "num_parts", "made_before", "counts")
        print_json({field: getattr(done, field) for field in fields})
        return 0
    errors = f", {done.num_errors:,} without features and so without a prediction" if done.num_errors else ""
    before = f", {done.made_before:,} made before" if done.made_before else ""
    sys.stdout.write(f"{done.num_rows:,} rows{errors} in {done.num_parts:,} part(s){before}: {done.path}\n")
    most = max(done.counts.values(), default=0)
    width = max(map(len, done.counts), default=0)
    if most:
        sys.stdout.writelines(f"  {label:<{width}} {count:>10,}\n" for label, count in done.counts.items())
    return 0


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{done:,} of {of:,} parts" if done < of else "\r\033[K")
