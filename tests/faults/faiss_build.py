"""Builds a FAISS index in a process that may be killed at a chosen moment.

The process ends by SIGKILL before, while or after it creates an object or a file of the index, publishes, or cleans.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.index_sources import open_source, request_of
from varve.config.index import Index
from varve.indexing.faiss.faiss_target import FaissTarget
from varve.indexing.record import IndexRecord

SETTINGS = {
    "Flat": {"kind": "Flat"},
    "IVF": {"kind": "IVF32,SQ8"},
    "RaBitQ": {"kind": "IVF32,RaBitQ"},
    "HNSW": {"kind": "HNSW8,SQ8", "shards": 2},
}
STEPS = ("train", "add", "finish", "publish", "clean")
MOMENTS = ("before", "while", "after")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Death:
    """Kills this process at one call of one step."""

    def __init__(self, seed: int, step: str, moment: str) -> None:
        self.random = random.Random(seed)
        self.step, self.moment = step, moment
        self.calls = self.random.randrange(3) if step == "add" else 0

    def around(self, step: str, call: Callable[[], Any]) -> Any:
        """Make a call of a step; this process may not survive it."""
        if step != self.step or self.calls:
            self.calls -= step == self.step
            return call()
        if self.moment == "before":
            _die()
        if self.moment == "while":  # a listing, a training, or a write of some milliseconds is interrupted
            threading.Thread(target=self._die_soon, daemon=True).start()
        result = call()
        _die()
        return result

    def _die_soon(self) -> None:
        time.sleep(self.random.expovariate(1 / 0.003))
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_stages(path: str, destination: str, name: str, seed: int = 0, death: tuple[str, str] | None = None) -> None:
    """Build, or continue to build, in an order of the parts that the seed decides.

    Args:
        path: of the output.
        destination: folder of the index.
        name: key of `SETTINGS`.
        seed: of the order and of the death.
        death: (step, moment) of `STEPS` and `MOMENTS`.
    """
    around = Death(seed, *death).around if death else lambda _, call: call()
    source = open_source(path)
    target = FaissTarget(destination, Index(path="run", to=f"faiss:{destination}", **SETTINGS[name]))
    request = request_of(source, "faiss", **SETTINGS[name])
    target.begin(request)
    kind = target.kinds(source)[0]
    around("train", lambda: target.train(kind, source))
    missing = sorted({*range(source.num_parts)} - target.added(kind, source))
    random.Random(seed).shuffle(missing)
    for part in missing:
        rows = source.read(part)
        around("add", lambda rows=rows: target.add(kind, source, rows))
    for piece in range(target.pieces(kind, source)):
        around("finish", lambda piece=piece: target.finish(kind, source, piece))
    record = IndexRecord(
        request=request,
        kind=kind.name,
        setting=dict(kind.settings[-1]),
        bytes_per_vector=kind.bytes_per_vector,
        created_at="2026-01-01T00:00:00+00:00",
        versions={},
    )
    published = around("publish", lambda: target.publish(kind, source, record))
    around("clean", lambda: target.clean(published))
