"""Entry point: `varve NAME ...` runs the command NAME."""

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
    "embed": "run a job, or resume it",
    "submit": "run a job on a Ray cluster and follow its progress",
    "plan": "estimate the time, size and cost of a job",
    "status": "show how much of a job is done",
    "verify": "check a finished output: coverage, checksums, values",
    "publish": "publish a finished output in a lake table, without encoding it again",
    "index": "build a search index of an output and prove its recall",
    "search": "find the rows of an output or an index that are nearest to a text",
    "report": "write one page about a finished output: run, texts, vectors, content",
    "map": "place all rows in two dimensions, to look at them",
    "render": "write a job as a Kubernetes RayJob or a Slurm script",
    "clean": "list or delete files of interrupted uploads",
    "probe": "train classifiers on an output and compare its layers",
    "predict": "apply a trained probe to another output",
    "schema": "print the JSON Schema of the job file",
    "demo": "embed, index, search and report docstrings of the installed Python",
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
        sys.stderr.write(f"varve: unknown command {name!r}\n\n{_usage()}")
        return 2
    return import_module(f"varve.cli.{name}").main(rest)


def main() -> None:
    """Run the command of this process and exit.

    The exit skips Python's teardown, which takes 1.5 seconds once torch and Ray are imported; registered exit handlers
    run before it.
    """
    _escape_what_stdout_cannot_encode()
    codes: list[int] = []
    atexit.register(_exit_now, codes)  # registered first, so it runs after all other handlers
    try:
        code = run_command()
        sys.stdout.flush()
    except KeyboardInterrupt:  # during the import of the command, which handles later interrupts itself
        sys.stderr.write("varve: stopped before the command started\n")
        code = 1
    except BrokenPipeError:  # the reader has ended, as in `varve status PATH | head -1`
        code = 1
    except OSError as e:
        if e.errno != errno.ENOSPC or e.filename:
            raise
        sys.stderr.write(f"varve: cannot write to stdout: {e.strerror}. Free some space and run the command again\n")
        code = 1
    codes.append(code)
    sys.exit(code)


def _escape_what_stdout_cannot_encode() -> None:
    """Escape characters that the encoding of stdout lacks, as stderr does by default."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _exit_now(codes: Sequence[int]) -> None:
    """Exit at once, unless an exception is about to be reported."""
    if not codes:
        return
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(codes[0])


def _usage() -> str:
    commands = "".join(f"  varve {name:<8} {description}\n" for name, description in COMMANDS.items())
    return f"usage: varve COMMAND ...\n\n{commands}\n`varve COMMAND --help` lists the arguments of a command.\n"
