"""`varve schema`: print the JSON Schema of the job file, for editors."""

import argparse
from collections.abc import Sequence

from varve.cli.command import print_json, run
from varve.config.job import json_schema

_DESCRIPTION = "Print the JSON Schema of the job file, with which editors check and complete it."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("schema", _DESCRIPTION, lambda _parser: None, _schema, argv)


def _schema(_arguments: argparse.Namespace) -> int:
    print_json(json_schema())
    return 0
