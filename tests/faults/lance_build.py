"""Builds a Lance dataset in a process that kills itself around a chosen write.

The process ends by SIGKILL before, while or after it writes the files of a part, the object that names them, the first
version of the dataset, a segment of the index, the index, or the manifest.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from tests.index_sources import build, open_source
from varve.config.index import Index
from varve.indexing.index_folder import IndexFolder
from varve.indexing.lance import lance_kind
from varve.indexing.lance.lance_target import LanceTarget
from varve.indexing.lance.table import Table
from varve.storage.object_store import Storage

# (class, method) of the writes, in their order; the name of an object is in a call of `create`.
WRITES = (
    (Table, "write_fragments"),
    (Storage, "create"),
    (Table, "create"),
    (Table, "build_segment"),
    (Table, "commit_index"),
    (Table, "remove_unused_files"),
    (IndexFolder, "publish"),
    (IndexFolder, "remove_staged"),
)
MOMENTS = ("before", "while", "after")
REPEATED = 3  # a call among the first few of a method
DEATHS = [(number, moment) for number in range(len(WRITES)) for moment in MOMENTS]
_ROWS_PER_SEGMENT = 400


class Death:
    """Ends this process at one call of one method."""

    def __init__(self, seed: int, moment: str, *, calls: int) -> None:
        self.random, self.moment = random.Random(seed), moment
        self.calls = self.random.randrange(calls)

    def wrap(self, method: Callable) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.calls -= 1
            if self.calls >= 0:
                return method(*arguments, **options)
            if self.moment == "before":
                _die()
            if self.moment == "while":
                threading.Thread(target=self._die_soon, daemon=True).start()
            method(*arguments, **options)
            _die()
            return None

        return wrapped

    def _die_soon(self) -> None:
        time.sleep(self.random.expovariate(1 / 0.003))
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_build(path: str, folder: str, seed: int = 0, death: tuple[int, str] | None = None) -> None:
    """Build, or continue to build, with an index of two segments.

    Args:
        path: of the output.
        folder: of the index.
        seed: of the death.
        death: (number of the write, moment) of `DEATHS`.
    """
    settings = Index(path=path, to=f"lance:{folder}", key="doc_id", keep=("title",), kind="IVF_SQ")
    with ExitStack() as patches:
        patches.enter_context(patch.object(lance_kind, "_ROWS_PER_SEGMENT", _ROWS_PER_SEGMENT))
        if death:
            owner, name = WRITES[death[0]]
            calls = REPEATED if name in {"write_fragments", "create"} and owner is not IndexFolder else 1
            wrapped = Death(seed, death[1], calls=1 if owner is Table and name == "create" else calls)
            patches.enter_context(patch.object(owner, name, wrapped.wrap(getattr(owner, name))))
        build(LanceTarget(folder, settings), open_source(path, settings.columns), "lance")
