"""`varve predict MODEL PATH`: apply a trained probe to the output of another run."""

import argparse
import re
import sys
from collections.abc import Sequence

from varve.cli.command import print_json, require_extra, run, show_progress, split_names
from varve.errors import JobError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DESCRIPTION = """Apply a probe that `varve probe` trained to the output of another run with the same features. Writes
one Parquet file of predictions for each part, to PATH/predictions."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("predict", _DESCRIPTION, _add_arguments, _predict, argv, resumable=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the --output of `varve probe`, or its folder model")
    parser.add_argument("path", metavar="PATH", help="output of a finished run with the same features")
    parser.add_argument("--name", help="name of the folder in PATH/predictions (default: the name of the label)")
    parser.add_argument(
        "--keep", type=split_names, default=(), metavar="A,B,...", help="columns of the run to copy to the predictions"
    )


def _predict(arguments: argparse.Namespace) -> int:
    require_extra("scipy")
    from varve.output import feature_sets
    from varve.probe.predictions import predict
    from varve.probe.saved_probe import Probe

    probe = Probe.load(arguments.model)
    name = arguments.name or re.sub(r"[^A-Za-z0-9._-]+", "-", probe.label).strip("-.") or "label"
    if not _NAME.fullmatch(name):
        msg = f"--name: {name!r} is not allowed: expected letters, digits, dots, - and _, with a letter or digit first"
        raise JobError(msg)
    result = predict(probe, feature_sets.open(arguments.path), name, keep=arguments.keep, on_part=_show_progress)
    if arguments.json:
        fields = ("path", "num_rows", "num_errors", "num_parts", "made_before", "counts")
        print_json({field: getattr(result, field) for field in fields})
        return 0
    errors = f", {result.num_errors:,} without features and so without a prediction" if result.num_errors else ""
    earlier = f", {result.made_before:,} from an earlier run" if result.made_before else ""
    sys.stdout.write(f"{result.num_rows:,} rows{errors} in {result.num_parts:,} part(s){earlier}: {result.path}\n")
    if any(result.counts.values()):
        width = max(map(len, result.counts))
        sys.stdout.writelines(f"  {label:<{width}} {count:>10,}\n" for label, count in result.counts.items())
    return 0


def _show_progress(done: int, total: int) -> None:
    show_progress(f"{done:,} of {total:,} parts" if done < total else "")
