"""`varve verify PATH`: check a finished output from its stored bytes."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from varve.cli.command import open_output, print_json, run, show_progress, start_ray_tasks
from varve.output.manifest import read_manifest

if TYPE_CHECKING:
    from varve.verification.verify import Check

_MAX_SHOWN = 10
# Larger outputs are checked on Ray; for smaller ones its start takes longer than the check.
_LARGE_BYTES = 2_000_000_000
_MANY_PARTS = 500
_DESCRIPTION = """Check a finished output from its stored bytes: all rows exactly once, checksums, row numbers, NaN and
lengths of vectors, and a sample of rows encoded again by plain transformers. Nothing is changed. Large outputs are
checked on Ray."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 if a check fails."""
    return run("verify", _DESCRIPTION, _add_arguments, _verify, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output.path of the job")
    parser.add_argument("--deep", action="store_true", help="also read the whole source and count its rows")


def _verify(arguments: argparse.Namespace) -> int:
    storage = open_output(arguments.path)
    manifest = read_manifest(storage)
    is_large = manifest is not None and (manifest.file_bytes > _LARGE_BYTES or len(manifest.parts) > _MANY_PARTS)
    checks = _run_checks(arguments, on_ray=is_large or bool(os.environ.get("RAY_ADDRESS")))
    passed = all(check.passed for check in checks)
    if arguments.json:
        listed = [{"check": check.name, "passed": check.passed, "failures": list(check.failures)} for check in checks]
        print_json({"path": storage.uri, "passed": passed, "checks": listed})
    else:
        sys.stdout.writelines(map(_text, checks))
        sys.stdout.write(f"{'Verified' if passed else 'Not verified'}: {storage.uri}\n")
    return 0 if passed else 1


def _run_checks(arguments: argparse.Namespace, *, on_ray: bool) -> "list[Check]":
    from varve.process_state import silence_datasets, silence_transformers
    from varve.verification.verify import in_threads, verify

    silence_transformers()
    silence_datasets()
    spread = start_ray_tasks() if on_ray else in_threads
    return verify(arguments.path, deep=arguments.deep, spread=spread, on_part=_show_progress)


def _show_progress(done: int, total: int) -> None:
    show_progress(f"{done:,} of {total:,} parts checked" if done < total else "")


def _text(check: "Check") -> str:
    lines = [f"  {'ok' if check.passed else 'FAILED':<8} {check.name}", *check.failures[:_MAX_SHOWN]]
    if len(check.failures) > _MAX_SHOWN:
        lines.append(f"and {len(check.failures) - _MAX_SHOWN:,} more")
    return "\n           ".join(lines) + "\n"
