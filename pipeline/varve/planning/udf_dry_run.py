"""Runs the job's Python functions on the first rows of the source, before anything is written.

In a subprocess, so that output, side effects or crashes of user code cannot affect the driver. Invariant: a job is
rejected if a function cannot be imported, returns values of a wrong type, or fails on all of these rows.
"""

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import pyarrow as pa

from varve.errors import JobError, VarveError
from varve.preprocessing.computed_columns import ComputedColumn, to_record_batch
from varve.preprocessing.text_blocks import readable_rows

DRY_RUN_ROWS = 64
_PROGRAM = "from varve.planning.udf_dry_run import main; main()"
_STRING_BYTES = 32.0  # assumed size of a string if there are no rows


def dry_run_functions(
    columns: Sequence[ComputedColumn], sample: pa.Table, text_columns: Sequence[str]
) -> Mapping[str, float]:
    """Compute the columns of a sample.

    If a row crashes the process, the job is not rejected: the run itself finds such rows.

    Returns:
        name → bytes of one row's value.

    Raises:
        JobError: a function cannot be used.
    """
    sizes = {column.name: float(column.row_bytes or _STRING_BYTES) for column in columns}
    if not columns:
        return sizes
    # -P keeps the current directory off sys.path: its modules must not shadow those of the library.
    command = [sys.executable, "-P", "-c", _PROGRAM]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    request = pickle.dumps((tuple(columns), readable_rows(sample, text_columns)))
    done = subprocess.run(command, input=request, capture_output=True, check=False, env=environment)  # noqa: S603 (our Python)
    reply: dict[str, object] = {}
    for line in done.stdout.splitlines():
        reply |= json.loads(line)
    if "error" in reply:
        raise JobError(str(reply["error"]))
    if "loaded" not in reply:
        last_line = "".join(f": {line.strip()}" for line in done.stderr.decode(errors="replace").splitlines()[-1:])
        names = ", ".join(dict.fromkeys(column.code.module for column in columns))
        msg = f"features: the process that imports {names} ended with exit code {done.returncode}{last_line}"
        raise JobError(msg)
    return sizes | {key: value for key, value in reply.items() if isinstance(value, float)}


def main() -> None:
    """Entry point of the subprocess: reads the pickled request from stdin, writes JSON lines to stdout."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of the functions goes to stderr
    columns, sample = pickle.load(io.BytesIO(sys.stdin.buffer.read()))  # noqa: S301 (from this program)
    try:
        for column in columns:
            column.load()
        _reply(replies, loaded=True)
        for column in columns:
            _dry_run(column, sample, replies)
    except VarveError as e:
        _reply(replies, error=str(e))


def _dry_run(column: ComputedColumn, sample: pa.Table, replies: TextIO) -> None:
    if not len(sample):
        return
    values, failed = column.compute(to_record_batch(sample))
    if len(failed) == len(sample):
        msg = f"features.{column.name}: {column.code.name} fails on each of the first {len(sample)} rows. {failed[0]}"
        raise JobError(msg)
    if column.row_bytes is None:
        _reply(replies, **{column.name: values.nbytes / len(sample)})


def _reply(replies: TextIO, **content: object) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()  # the next function may crash the process
