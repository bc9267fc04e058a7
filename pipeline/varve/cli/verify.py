"""`varve verify PATH`: prove a finished output again, from what is stored."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from varve.cli.command import print_json, run
from varve.errors import JobError
from varve.output.manifest import JOB_NAME, read_manifest
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from varve.verification.verify import Check

_SHOWN = 10
# From here on starting Ray is worth its seconds.
_LARGE_BYTES = 2_000_000_000
_MANY_PARTS = 500


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 if a check fell short."""
    describe = "Prove an output: coverage, checksums, rows, numbers, canary."
    return run("verify", describe, _add, _verify, argv, on_ray=True)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the job's output.path")
    parser.add_argument(
        "--deep", action="store_true", help="read the whole source again too, and count the rows of each shard"
    )


def _verify(arguments: argparse.Namespace) -> int:
    storage = Storage(arguments.path, patient=False)
    if storage.read(JOB_NAME) is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    finished = read_manifest(storage)
    large = finished is not None and (finished.file_bytes > _LARGE_BYTES or len(finished.parts) > _MANY_PARTS)
    checks = _verify_on_ray(arguments) if large or os.environ.get("RAY_ADDRESS") else _verify_here(arguments)
    passed = all(check.passed for check in checks)
    if arguments.json:
        listed = [{"check": check.name, "passed": check.passed, "failures": list(check.failures)} for check in checks]
        print_json({"path": storage.uri, "passed": passed, "checks": listed})
    else:
        for check in checks:
            sys.stdout.write(f"  {'ok' if check.passed else 'FAILED':<8} {check.name}\n")
            sys.stdout.writelines(f"           {told}\n" for told in check.failures[:_SHOWN])
            if len(check.failures) > _SHOWN:
                sys.stdout.write(f"           and {len(check.failures) - _SHOWN:,} more\n")
        sys.stdout.write(f"{'Verified' if passed else 'Not verified'}: {storage.uri}\n")
    return 0 if passed else 1


def _verify_here(arguments: argparse.Namespace) -> "list[Check]":
    from varve.process_state import silence_datasets, silence_transformers
    from varve.verification.verify import verify

    silence_transformers()
    silence_datasets()
    return verify(arguments.path, deep=arguments.deep, on_part=_show)


def _verify_on_ray(arguments: argparse.Namespace) -> "list[Check]":
    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute
    from varve.engine.ray_tasks import spread
    from varve.process_state import silence_datasets, silence_transformers
    from varve.verification.verify import verify

    silence_transformers()
    silence_datasets()
    start_ray(Compute())
    return verify(arguments.path, deep=arguments.deep, spread=spread, on_part=_show)


def _show(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{done:,} of {of:,} parts checked" if done < of else "\r\033[K")
