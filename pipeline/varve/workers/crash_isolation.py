"""Encodes a part that repeatedly crashed its worker in a subprocess, and finds the rows that crash it.

Knows nothing of Ray. A piece that crashes the process is halved, down to single rows; these become error rows, and all
other rows keep their features. Invariant: a block that does not crash is encoded as a whole, so the rows of a worker
that was killed from outside do not change by a bit.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Self

import pyarrow as pa

from varve.errors import RunError

logger = logging.getLogger(__name__)

WORKER_DIED = "worker died"
# More crashing rows than this in one part have another cause than their texts.
_MAX_CRASHING_ROWS = 16
# A block is tried a second time, because the process may have been killed from outside.
_TRIES = 2
_PR_SET_PDEATHSIG = 1

Encode = Callable[[pa.Table, int], pa.Table]  # (rows, first row) → features


@dataclass
class CrashIsolation:
    """Context manager that encodes the blocks of one part in a subprocess, started with the first block.

    Attributes:
        make_encode: called in the subprocess; returns the function that encodes rows.
        schema: of the result.
        shard: of the part.
        crashing_rows: rows that crashed the process.
    """

    make_encode: Callable[[], Encode]
    schema: pa.Schema
    shard: int
    crashing_rows: list[int] = field(default_factory=list)
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Does not start the process yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def encode(self, table: pa.Table, start: int) -> pa.Table:
        """Encode one block; rows that crash the process become error rows.

        Args:
            table: rows of the block.
            start: number of its first row.

        Raises:
            RunError: the process cannot be started, or too many rows crash it.
        """
        for _ in range(_TRIES):
            if (result := self._attempt(table, start)) is not None:
                return result
        return pa.concat_tables(self._halves(table, start))

    def _halves(self, table: pa.Table, start: int) -> Iterator[pa.Table]:
        if len(table) == 1:
            yield self._error_row(table, start)
            return
        middle = len(table) // 2
        for first, piece in ((start, table.slice(0, middle)), (start + middle, table.slice(middle))):
            result = self._attempt(piece, first)
            if result is None:
                yield from self._halves(piece, first)
            else:
                yield result

    def _attempt(self, table: pa.Table, start: int) -> pa.Table | None:
        """Return the features of a piece; None if it crashed the process."""
        pool = self._started_pool()
        try:
            return pool.submit(_encode, table, start).result()
        except BrokenProcessPool:
            self._pool = None
            return None

    def _started_pool(self) -> ProcessPoolExecutor:
        """Start the process and load the encoder; a crash during this is not blamed on rows."""
        if self._pool is None:
            # Python would put the current folder first on the fork server's sys.path.
            os.environ["PYTHONSAFEPATH"] = "1"
            # The fork server has done the imports, so a restart only loads the model.
            context = get_context("forkserver")
            context.set_forkserver_preload(["varve.workers.replica"])
            pool = ProcessPoolExecutor(1, context, _load, (self.make_encode,))
            try:
                pool.submit(bool).result()
            except BrokenProcessPool as e:
                msg = (
                    f"shard {self.shard}: a part crashed its worker repeatedly, and the subprocess that finds the "
                    "crashing rows could not be started. The machine may have too little memory for a second encoder"
                )
                raise RunError(msg) from e
            self._pool = pool
        return self._pool

    def _error_row(self, row: pa.Table, number: int) -> pa.Table:
        """The output row of a crashing row: kept columns, an error, and null features."""
        self.crashing_rows.append(number)
        logger.warning("shard %d, row %d crashed its worker and becomes an error row", self.shard, number)
        if len(self.crashing_rows) > _MAX_CRASHING_ROWS:
            msg = (
                f"shard {self.shard}: more than {_MAX_CRASHING_ROWS} rows of one part crashed their worker: "
                f"{', '.join(map(str, self.crashing_rows[:_MAX_CRASHING_ROWS]))}, ... Texts are an unlikely cause of "
                "so many crashes. Check the memory of the worker"
            )
            raise RunError(msg)
        values = {"error": WORKER_DIED, "shard": self.shard, "row": number}
        arrays = [
            row[f.name].combine_chunks() if f.name in row.column_names else pa.array([values.get(f.name)], f.type)
            for f in self.schema
        ]
        return pa.table(arrays, schema=self.schema)


_encode_rows: Encode | None = None  # in the subprocess


def _load(make_encode: Callable[[], Encode]) -> None:
    global _encode_rows  # noqa: PLW0603 (the process has no other state)
    if sys.platform == "linux":
        # The fork server dies with the worker; then this process must end too and release its memory.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _encode_rows = make_encode()


def _encode(table: pa.Table, start: int) -> pa.Table:
    assert _encode_rows is not None
    return _encode_rows(table, start)
