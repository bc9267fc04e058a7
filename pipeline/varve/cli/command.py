"""What commands share: the frame that runs them, their output, and small parts of several of them."""

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from varve.cli.log_output import logs_to_stderr
from varve.cluster.auth_token import use_token
from varve.config.credentials import refuse_credentials
from varve.config.table_address import TableAddress, parse_table_address
from varve.errors import JobError, VarveError
from varve.monitoring.terminal_line import update_line
from varve.output.manifest import JOB_NAME
from varve.process_state import keep_environment
from varve.storage.object_store import Storage

if TYPE_CHECKING:
    from varve.engine.parallel import Spread

# Read by Ray and tokenizers when they are imported, and by Python. Values that the user has set stay.
ENVIRONMENT = {
    # Keeps the current folder off sys.path where a library starts `python -c ...`.
    "PYTHONSAFEPATH": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Drops notices of dead workers, which Ray prints to stdout even with log_to_driver=False.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "TOKENIZERS_PARALLELISM": "true",
}
_EXIT_CODES = "Exit codes: 0 success; 1 the run failed or a check did not pass; 2 the job or the command is wrong."


def run(
    name: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str],
    *,
    uses_ray: bool = False,
    resumable: bool = False,
) -> int:
    """Parse a command's arguments and run it.

    Args:
        name: of the command.
        description: what it does, for --help.
        add_arguments: adds its arguments to the parser.
        command: runs it; returns its exit code.
        argv: the command line after the name.
        uses_ray: whether it joins or starts a Ray, unless it is sent to another one with `--to`.
        resumable: whether the same command continues where it was interrupted.

    Returns:
        0 success, 1 the run failed or a check did not pass, 2 the job or the command is wrong.
    """
    parser = argparse.ArgumentParser(prog=f"varve {name}", description=description, epilog=_EXIT_CODES)
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    arguments = parser.parse_args(argv)
    restore_environment = keep_environment()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    use_token(os.environ.get("RAY_ADDRESS") if uses_ray and not getattr(arguments, "cluster", None) else None)
    warnings.filterwarnings("ignore")
    # They act like Ctrl-C, until a run handles signals itself (monitoring/watchdog.py). `nohup` lets SIGHUP be ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with logs_to_stderr():
            return command(arguments)
    except VarveError as e:
        return _fail(name, str(e), e.exit_code, as_json=arguments.json)
    except KeyboardInterrupt:
        again = "Finished parts stay: the same command resumes" if resumable else "The same command starts again"
        return _fail(name, f"stopped. {again}", 1, as_json=arguments.json)
    finally:
        restore_environment()


def _fail(name: str, message: str, exit_code: int, *, as_json: bool) -> int:
    if as_json:
        print_json({"error": message, "exit_code": exit_code})
    sys.stderr.write(f"varve {name}: {message}\n")
    return exit_code


def print_json(content: dict[str, Any]) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def show_progress(text: str) -> None:
    """Replace the progress line of a terminal; an empty text clears it. Writes nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        update_line(sys.stderr, text)


def split_names(text: str) -> tuple[str, ...]:
    """`A, B,...` → (A, B, ...)."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def require_extra(*modules: str, extra: str = "probe") -> None:
    """Check that the packages of an extra are installed.

    Raises:
        JobError: one is not.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        msg = f"this command needs {' and '.join(missing)}: run pip install '.[{extra}]' in Varve's folder"
        raise JobError(msg)


def open_output(path: str) -> Storage:
    """Open the output of a run.

    Raises:
        JobError: the path is empty, or there is no output at it.
    """
    storage = Storage(path, patient=False)
    if storage.read(JOB_NAME) is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    return storage


def to_address(text: str) -> TableAddress:
    """Parse the address of a table.

    Raises:
        JobError: it is not one.
    """
    try:
        return parse_table_address(refuse_credentials(text))
    except ValueError as e:
        raise JobError(str(e)) from e


def writable_folder(address: str) -> Path:
    """Return the folder that --output names, after a test write to it or to its nearest existing parent.

    Raises:
        JobError: it is empty or the address of a store, or cannot be written.
    """
    if not address.strip():
        msg = f"--output: {address!r} is empty: expected a folder. Is a variable of the shell unset?"
        raise JobError(msg)
    if "://" in address:
        msg = f"--output: {address} is the address of a store: expected a local folder"
        raise JobError(msg)
    folder = Path(address).absolute()
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with TemporaryFile(dir=existing) as file:
            file.write(b"\n")
    except OSError as e:
        msg = f"--output: {folder} cannot be written: {e.strerror}. Choose another folder"
        raise JobError(msg) from e
    return folder


def start_ray_tasks() -> "Spread":
    """Join or start a Ray; returns the function that runs work as tasks on it."""
    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute
    from varve.engine.ray_tasks import spread

    start_ray(Compute())
    return spread
