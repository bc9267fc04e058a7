"""`varve verify PATH`: prove a finished output again, from what is stored."""

import argparse
import sys
from collections.abc import Sequence

from jobs.command import print_json, run
from pipeline.errors import JobError
from pipeline.storage.objects import Storage

_SHOWN = 10


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 if a check fell short."""
    return run("verify", "Prove an output: coverage, checksums, rows, numbers, canary.", _add, _verify, argv)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the job's output.path")


def _verify(arguments: argparse.Namespace) -> int:
    storage = Storage(arguments.path)
    if storage.read("_varve/job.json") is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    from pipeline.quiet import quiet_datasets, quiet_transformers
    from pipeline.verify import verify

    quiet_transformers()
    quiet_datasets()

    checks = verify(arguments.path)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
