"""Builds an index of files in a process that may be killed at a chosen moment.

The process ends by SIGKILL before, while or after it writes or deletes one object.
"""

import os
import random
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from tests.index_sources import build, open_source
from varve.config.index import Index
from varve.indexing.arrays.array_target import ArrayTarget
from varve.indexing.ndjson.ndjson_target import NdjsonTarget
from varve.indexing.target import Target
from varve.indexing.usearch.usearch_target import UsearchTarget
from varve.storage.object_store import Storage

TARGETS = ("npy", "fbin", "ndjson", "usearch")
MOMENTS = ("before", "while", "after")
_FILE_BYTES = 40_000
# That change the store before each of two builders dies; a whole build has 9 or more.
_MAX_CALLS = (5, 16)


def target_of(name: str, destination: str) -> Target:
    match name:
        case "npy" | "fbin":
            return ArrayTarget(destination, None, name, _FILE_BYTES)
        case "ndjson":
            return NdjsonTarget(destination, None)
        case _:
            settings = Index(path="run", to=f"usearch:{destination}", kind="f16", shards=2)
            return UsearchTarget(destination, settings)


def run(path: str, destination: str, name: str, death: tuple[int, str] | None = None) -> None:
    """Build, or continue to build.

    Args:
        path: of the output.
        destination: folder or address of the index.
        name: of the target.
        death: (number of the call that changes the store, moment of `MOMENTS`) of this process's end.
    """
    if death:
        _die_at(*death)
    build(target_of(name, destination), open_source(path), name)


def _die_at(call: int, moment: str) -> None:
    """Replace the methods of `Storage` that change a store, in this process."""
    left = call

    def around(method: Any) -> Any:
        def changed(storage: Storage, *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left:
                return method(storage, *arguments)
            if moment == "before":
                _die()
            result = method(storage, *(_interrupted(each) if moment == "while" else each for each in arguments))
            return _die() or result

        return changed

    for name in ("create", "upload", "write", "delete"):
        setattr(Storage, name, around(getattr(Storage, name)))


def _interrupted(argument: Any) -> Any:
    """The blocks of an object, with the end of this process in their middle; other arguments are unchanged."""
    if not callable(argument):
        return argument

    def blocks() -> Iterator[bytes | memoryview]:
        made: Iterable = list(argument())
        yield from made[: len(made) // 2 + 1]
        _die()

    return blocks


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def contents(storage: Storage) -> dict[str, bytes | None]:
    return {entry.name: storage.read(entry.name) for entry in storage.list("")}


def run_until_done(context: Any, arguments: tuple, draw: random.Random, rounds: int = 2) -> list[int]:
    """Run builders that are killed, two at once, then one that is not; returns the exit codes."""
    codes = []
    for _ in range(rounds):
        deaths = [(draw.randrange(1, most), draw.choice(MOMENTS)) for most in _MAX_CALLS]
        processes = [context.Process(target=run, args=(*arguments, death)) for death in deaths]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes += [process.exitcode for process in processes]
    run(*arguments)
    return codes
