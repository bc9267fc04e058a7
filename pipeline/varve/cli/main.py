"""`varve NAME ...` → the command of that name."""

import atexit
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper

COMMANDS = {
    "embed": "run a job, or go on with it",
    "submit": "run a job on a Ray cluster, and follow it",
    "plan": "say what a job will take, before it runs",
    "status": "say how far the run of an output is",
    "verify": "prove an output: coverage, checksums, numbers",
    "render": "fill a job into what Kubernetes or Slurm takes",
    "clean": "sweep what broken uploads have left",
    "probe": "train on a run's features; say which layer knows most",
    "predict": "lay a trained probe's predictions beside a run",
    "schema": "print the JSON Schema of the job file",
    "demo": "embed and search the docstrings of this machine's Python",
}


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"varve {version('varve')}\n")
        return 0
    if arguments[:1] in ([], ["-h"], ["--help"]):
        (sys.stdout if arguments else sys.stderr).write(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"varve: no command {name!r}\n\n{_usage()}")
        return 2
    return import_module(f"varve.cli.{name}").main(rest)


def main() -> None:
    """Run the command of this process, and end it.

    A process that has imported torch and joined a Ray takes itself apart for one and a half seconds, for nobody: it
    leaves as soon as all that was registered for its end is done.
    """
    _print_whatever_the_locale()
    codes: list[int] = []
    atexit.register(_leave, codes)  # before all others, so that it is called after them
    try:
        code = run_command()
        sys.stdout.flush()
    except KeyboardInterrupt:  # while the command was imported; from then on it tells by itself
        sys.stderr.write("varve: stopped before it began\n")
        code = 1
    except BrokenPipeError:  # `varve status PATH | head -1`: who was reading has seen enough
        code = 1
    except OSError as e:
        if e.errno != errno.ENOSPC or e.filename:
            raise
        sys.stderr.write(f"varve: the answer can't be written to stdout: {e.strerror}. Make room and ask again\n")
        code = 1
    codes.append(code)
    sys.exit(code)


def _print_whatever_the_locale() -> None:
    """Escape letters that stdout's encoding lacks, as stderr does by itself."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave(codes: Sequence[int]) -> None:
    """End at once, unless something was raised: that is told on the usual way."""
    if not codes:
        return
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(codes[0])


def _usage() -> str:
    listed = "".join(f"  varve {name:<8} {what}\n" for name, what in COMMANDS.items())
    return f"usage: varve COMMAND ...\n\n{listed}\n`varve COMMAND --help` says more.\n"
