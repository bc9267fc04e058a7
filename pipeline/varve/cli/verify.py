"""`varve verify PATH`: check a finished output from its stored bytes."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varve.cli.command import open_output, print_json, run, show_progress, to_address
from varve.config.table_address import is_table
from varve.errors import JobError
from varve.output.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from varve.verification.check import Check

_MAX_SHOWN = 10
_DESCRIPTION = """Check a finished output from its stored bytes: all rows exactly once and no other file, checksums, row
numbers, NaN and lengths of vectors, what its records derive from, and a sample of rows encoded again by plain
transformers. A lake table of features is compared with its source, key by key. Nothing is changed, and no code that
the output names is run, unless --code or --trust-remote-code permits it. Large outputs are checked on Ray."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 if a check fails."""
    return run("verify", _DESCRIPTION, _add_arguments, _verify, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output.path or output.table of the job")
    parser.add_argument("--deep", action="store_true", help="also read the whole source and count its rows")
    parser.add_argument(
        "--expect", metavar="SHA256", help="hash that manifest.json must have, as its run printed it: proves every byte"
    )
    parser.add_argument(
        "--code", metavar="FOLDER", help="run the job's Python functions, searched here, for the sampled rows"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the run's checkpoint"
    )


def _verify(arguments: argparse.Namespace) -> int:
    if is_table(arguments.path):
        checks, uri = _check_table(arguments), arguments.path
    else:
        storage = open_output(arguments.path)
        checks, uri = _run_checks(arguments, read_manifest(storage)), storage.uri
    passed = all(check.passed for check in checks)
    if arguments.json:
        print_json({"path": uri, "passed": passed, "checks": list(map(_to_json, checks))})
    else:
        sys.stdout.writelines(map(_text, checks))
        sys.stdout.write(f"{_conclusion(checks)}: {uri}\n")
    return 0 if passed else 1


def _check_table(arguments: argparse.Namespace) -> "list[Check]":
    if arguments.deep or arguments.expect:
        msg = f"--{'deep' if arguments.deep else 'expect'} is for folders: a table is always compared with its source"
        raise JobError(msg)
    from varve.backfill.table_check import check_table
    from varve.engine.parallel import choose_spread
    from varve.planning.saved_plan import CodePermission
    from varve.process_state import silence_datasets, silence_transformers

    silence_transformers()
    silence_datasets()
    permission = CodePermission(arguments.code, arguments.trust_remote_code)
    return check_table(to_address(arguments.path), permission, choose_spread(None))


def _run_checks(arguments: argparse.Namespace, manifest: Manifest | None) -> "list[Check]":
    from varve.engine.parallel import choose_spread
    from varve.planning.saved_plan import CodePermission
    from varve.process_state import silence_datasets, silence_transformers
    from varve.verification.verify import verify

    silence_transformers()
    silence_datasets()
    return verify(
        arguments.path,
        deep=arguments.deep,
        expect=arguments.expect,
        permission=CodePermission(arguments.code, arguments.trust_remote_code),
        spread=choose_spread(manifest),
        on_part=_show_progress,
    )


def _show_progress(done: int, total: int) -> None:
    show_progress(f"{done:,} of {total:,} parts checked" if done < total else "")


def _to_json(check: "Check") -> dict[str, Any]:
    return {
        "check": check.name,
        "passed": check.passed,
        "failures": list(check.failures),
        "skipped": list(check.skipped),
    }


def _conclusion(checks: "Sequence[Check]") -> str:
    if not all(check.passed for check in checks):
        return "Not verified"
    skipped = [check.name for check in checks if check.skipped]
    return f"Verified, except what was skipped of {' and '.join(skipped)}" if skipped else "Verified"


def _text(check: "Check") -> str:
    skipped = [f"  skipped  {check.name}: {reason}\n" for reason in check.skipped]
    if check.passed and skipped:
        return "".join(skipped)
    lines = [f"  {'ok' if check.passed else 'FAILED':<8} {check.name}", *check.failures[:_MAX_SHOWN]]
    if len(check.failures) > _MAX_SHOWN:
        lines.append(f"and {len(check.failures) - _MAX_SHOWN:,} more")
    return "\n           ".join(lines) + "\n" + "".join(skipped)
