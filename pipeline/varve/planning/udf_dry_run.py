"""The first rows of a source through the job's functions, before anything is written.

In a process of its own: what a function prints, changes or kills there is nobody's loss. Invariant: a job whose
functions can't be imported, give what they should not, or fail on every row that was tried, is refused.
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
from varve.preprocessing.computed_columns import ComputedColumn, as_batch
from varve.preprocessing.text_blocks import readable_rows

TRIAL_ROWS = 64
_PROGRAM = "from varve.planning.udf_dry_run import main; main()"
# Of a row, where none could be tried.
_STRING_BYTES = 32.0


def try_functions(
    columns: Sequence[ComputedColumn], sample: pa.Table, text_columns: Sequence[str]
) -> Mapping[str, float]:
    """Compute the columns of a sample.

    A row that kills the process refuses nothing: a run has the means to find it.

    Returns:
        name → bytes of one row's value.

    Raises:
        JobError: a function can't be used.
    """
    sizes = {column.name: float(column.row_bytes or _STRING_BYTES) for column in columns}
    if not columns:
        return sizes
    # -P: the folder in which the command stands must not lend its modules to the library.
    command = [sys.executable, "-P", "-c", _PROGRAM]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    question = pickle.dumps((tuple(columns), readable_rows(sample, text_columns)))
    done = subprocess.run(command, input=question, capture_output=True, check=False, env=environment)  # noqa: S603 (ours)
    answer: dict[str, object] = {}
    for line in done.stdout.splitlines():
        answer |= json.loads(line)
    if "error" in answer:
        raise JobError(str(answer["error"]))
    if "loaded" not in answer:
        last = "".join(f": {line.strip()}" for line in done.stderr.decode(errors="replace").splitlines()[-1:])
        names = ", ".join(dict.fromkeys(column.code.module for column in columns))
        msg = f"features: the process that imports {names} ended with exit code {done.returncode}{last}"
        raise JobError(msg)
    return sizes | {key: value for key, value in answer.items() if isinstance(value, float)}


def main() -> None:
    """The other process: a question from stdin, lines of JSON to stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the functions print is no answer
    columns, sample = pickle.load(io.BytesIO(sys.stdin.buffer.read()))  # noqa: S301 (from this program itself)
    try:
        for column in columns:
            column.load()
        _say(answers, loaded=True)
        for column in columns:
            _try(column, sample, answers)
    except VarveError as e:
        _say(answers, error=str(e))


def _try(column: ComputedColumn, sample: pa.Table, answers: TextIO) -> None:
    if not len(sample):
        return
    values, failed = column.compute(as_batch(sample))
    if len(failed) == len(sample):
        msg = f"features.{column.name}: {column.code.name} fails on each of the first {len(sample)} rows. {failed[0]}"
        raise JobError(msg)
    if column.row_bytes is None:
        _say(answers, **{column.name: values.nbytes / len(sample)})


def _say(answers: TextIO, **words: object) -> None:
    answers.write(json.dumps(words) + "\n")
    answers.flush()
