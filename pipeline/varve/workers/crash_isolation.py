"""A part that keeps killing its worker, encoded in a second process, until the rows that kill are known.

Knows nothing of Ray. A piece that kills the process is cut in two, down to single rows; these become error rows, and
what lives is kept. Invariant: a block that passes whole is encoded whole, so a worker that was killed from outside
changes no bit of its rows.
"""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Self

import pyarrow as pa

from varve.errors import RunError

WORKER_DIED = "worker died"
# With more killers than this in one part it is not the texts' fault.
_MAX_KILLERS = 16
# A whole block gets a second chance: a process may also be killed from outside.
_TRIES = 2
_PR_SET_PDEATHSIG = 1

Make = Callable[[], Callable[[pa.Table, int], pa.Table]]  # makes, in the process, what brings rows to features


@dataclass
class CrashIsolation:
    """A process of its own for suspicious rows; start it with `with`."""

    make: Make
    schema: pa.Schema  # of the result
    shard: int
    killers: list[int] = field(default_factory=list)  # rows that killed the process
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Nothing is started before the first row comes."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def encode(self, table: pa.Table, start: int) -> pa.Table:
        """Bring one block to its features; rows that kill the process come back as error rows.

        Args:
            table: of the block.
            start: number of its first row.

        Raises:
            RunError: no process can be started, or too many rows kill it.
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
        """The features of a piece; None if it killed the process."""
        pool = self._ready_pool()
        try:
            return pool.submit(_encode, table, start).result()
        except BrokenProcessPool:
            self._pool = None
            return None

    def _ready_pool(self) -> ProcessPoolExecutor:
        """A process that has its encoder: one that can't even come so far says nothing about rows."""
        if self._pool is None:
            # Forked off a server that has the imports behind it: a death costs no more than loading the model.
            context = get_context("forkserver")
            context.set_forkserver_preload(["varve.workers.replica"])
            pool = ProcessPoolExecutor(1, context, _start, (self.make,))
            try:
                pool.submit(_is_ready).result()
            except BrokenProcessPool as e:
                msg = (
                    f"shard {self.shard}: a part killed its worker again and again, and no second process could be "
                    "started beside the worker to find out which rows do so: there may be too little memory for two"
                )
                raise RunError(msg) from e
            self._pool = pool
        return self._pool

    def _error_row(self, row: pa.Table, at: int) -> pa.Table:
        self.killers.append(at)
        if len(self.killers) > _MAX_KILLERS:
            msg = (
                f"shard {self.shard}: more than {_MAX_KILLERS} rows of one part killed their worker, the first are "
                f"{', '.join(map(str, self.killers[:_MAX_KILLERS]))}. That many are not the texts' fault: look at the "
                "memory of the worker"
            )
            raise RunError(msg)
        known = {"error": WORKER_DIED, "shard": self.shard, "row": at}
        arrays = [
            row[f.name].combine_chunks() if f.name in row.column_names else pa.array([known.get(f.name)], f.type)
            for f in self.schema
        ]
        return pa.table(arrays, schema=self.schema)


_encoder: Any = None


def _start(make: Make) -> None:
    global _encoder  # noqa: PLW0603 (the one thing that this process is for)
    if sys.platform == "linux":
        # A worker that is killed takes its fork server along; this process must not stay behind with its memory.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _encoder = make()


def _is_ready() -> bool:
    return _encoder is not None


def _encode(table: pa.Table, start: int) -> pa.Table:
    return _encoder(table, start)
