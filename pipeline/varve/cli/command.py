"""What all commands share: their job arguments, their exit codes, and how they print."""

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from varve.cli.log_output import logs_to_stderr
from varve.cluster.auth_token import use_token
from varve.config.feature_shorthand import parse_feature
from varve.config.job import Job
from varve.errors import JobError, VarveError

Main = Callable[[argparse.Namespace], int]

# Read by Ray when it is imported; set what the user has not.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # What passes there, past log_to_driver, are notices of dead workers: on stdout, which is ours.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "TOKENIZERS_PARALLELISM": "true",
}


def run(
    name: str,
    describe: str,
    add: Callable[[argparse.ArgumentParser], None],
    main: Main,
    argv: Sequence[str],
    *,
    on_ray: bool = False,
    goes_on: bool = False,
) -> int:
    """Parse a command's arguments and run it.

    Args:
        name: of the command.
        describe: what it does.
        add: adds its arguments.
        main: does it.
        argv: as they were given.
        on_ray: it joins or starts a Ray, unless told `--to` another.
        goes_on: begun again it goes on where it was stopped.

    Returns:
        0 done, 1 the run failed or a check fell short, 2 the job or the command is wrong.
    """
    parser = argparse.ArgumentParser(prog=f"varve {name}", description=describe)
    add(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    arguments = parser.parse_args(argv)
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    use_token(os.environ.get("RAY_ADDRESS") if on_ray and not getattr(arguments, "to", None) else None)
    warnings.filterwarnings("ignore")
    # Until a run takes both over (monitoring/watchdog.py), a notice to end is told like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with logs_to_stderr():
            return main(arguments)
    except VarveError as e:
        return _fail(name, str(e), e.exit_code, as_json=arguments.json)
    except KeyboardInterrupt:
        again = "What was committed stays; the same command goes on from there"
        told = f"stopped. {again if goes_on else 'The same command begins anew'}"
        return _fail(name, told, 1, as_json=arguments.json)


def _fail(name: str, told: str, exit_code: int, *, as_json: bool) -> int:
    if as_json:
        print_json({"error": told, "exit_code": exit_code})
    sys.stderr.write(f"varve {name}: {told}\n")
    return exit_code


def print_json(content: dict[str, Any]) -> None:
    """One document to stdout."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def writable_folder(address: str) -> Path:
    """The folder that --output names; that it can be written is proved where it is, or where it would be made.

    Raises:
        JobError: it is the address of a store, or can't be written.
    """
    if "://" in address:
        msg = f"--output: {address} is the address of a store: expected a folder of this machine"
        raise JobError(msg)
    folder = Path(address).absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with TemporaryFile(dir=there) as file:
            file.write(b"\n")
    except OSError as e:
        msg = f"--output: {folder} can't be written: {e.strerror}. Choose another folder"
        raise JobError(msg) from e
    return folder


def add_job_file(parser: argparse.ArgumentParser) -> None:
    """A job file, and values laid over it."""
    parser.add_argument("job", nargs="?", metavar="JOB.yaml", help="the job file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="settings",
        help="lay a value over the job file",
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """A job file, or the common case without one."""
    add_job_file(parser)
    alone = parser.add_argument_group("without a job file")
    alone.add_argument("--dataset", help="hub id, folder, or builder (parquet, json, csv, text, arrow)")
    alone.add_argument("--data-files", action="append", metavar="URL", help="files of a builder; globs allowed")
    alone.add_argument("--split", help="default: train")
    alone.add_argument("--text", action="append", metavar="COLUMN", help="text column; twice for sentence pairs")
    alone.add_argument("--keep", action="append", metavar="COLUMN", help="column to carry through")
    alone.add_argument("--model", help="hub id or folder")
    alone.add_argument("--max-tokens", type=int, help="tokens of a text, special tokens included")
    alone.add_argument(
        "--feature",
        action="append",
        metavar="NAME=POOL[@LAYERS][+OPTION]",
        help="for example embedding=mean@-1+normalize or cls=cls@0,6,12; default: embedding=mean",
    )
    alone.add_argument("--output", help="folder or object store prefix")


def read_job(arguments: argparse.Namespace) -> Job:
    """The job that the arguments describe.

    Raises:
        JobError: it is wrong, or described twice or not at all.
    """
    given = _given(arguments)
    if arguments.job:
        if given:
            msg = f"a job file and --{next(iter(given))} were both given. Use --set with a job file"
            raise JobError(msg)
        return Job.load(arguments.job, arguments.settings)
    absent = [f"--{name}" for name in ("dataset", "text", "model", "output") if name not in given]
    if absent:
        msg = f"give a job file, or all of --dataset, --text, --model and --output ({', '.join(absent)} missing)"
        raise JobError(msg)
    texts = given["text"]
    if len(texts) > 2:
        msg = f"--text was given {len(texts)} times: once for a text, twice for a sentence pair"
        raise JobError(msg)
    content: dict[str, Any] = {
        "source": {"dataset": given["dataset"], "text": texts if len(texts) > 1 else texts[0]},
        "model": {"name": given["model"]},
        "output": {"path": given["output"]},
    }
    content["source"] |= {key: given[key.replace("_", "-")] for key in ("split", "keep") if key in given}
    if "data-files" in given:
        content["source"]["data_files"] = given["data-files"]
    if "max-tokens" in given:
        content["model"]["max_tokens"] = given["max-tokens"]
    if "feature" in given:
        content["features"] = _features(given["feature"])
    return Job.parse(content, "command line", arguments.settings)


def _features(texts: Sequence[str]) -> dict[str, Any]:
    """The features by their names."""
    features: dict[str, Any] = {}
    for name, feature in map(parse_feature, texts):
        if name in features:
            msg = f"--feature {name} was given twice: give each a name of its own"
            raise JobError(msg)
        features[name] = feature
    return features


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("dataset", "data-files", "split", "text", "keep", "model", "max-tokens", "feature", "output")
    values = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    return {name: value for name, value in values.items() if value is not None}
