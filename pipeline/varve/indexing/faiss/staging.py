"""What is staged while a FAISS index is built: names, the trained index, a workspace, and how a file is published.

Knows nothing of vectors. Invariants: staged objects of two kinds have different names; `promote` may be repeated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from varve.errors import RunError
from varve.indexing.faiss.faiss_kind import FaissKind
from varve.indexing.faiss.faiss_library import decode_index
from varve.indexing.index_folder import STAGED
from varve.indexing.target import Kind
from varve.storage.object_store import Storage

INDEX_NAME = "index.faiss"
_COPY_BYTES = 2**24


def staged_folder(kind: Kind) -> str:
    """The folder of what is staged of a kind."""
    return f"{STAGED}/{kind.name.replace(',', '-')}"


def trained_name(kind: Kind) -> str:
    """The object that holds the index without vectors."""
    return f"{staged_folder(kind)}/trained/{INDEX_NAME}"


def part_name(kind: Kind, part: int, suffix: str) -> str:
    """The object that holds the codes or the vectors of a part."""
    return f"{staged_folder(kind)}/parts/part-{part:08d}.{suffix}"


def staged_suffixes(kind: FaissKind) -> tuple[str, ...]:
    """What is staged of a part."""
    if kind.family == "graph":
        return ()
    return ("codes", "vectors") if kind.rescores else ("codes",)


def names_in(storage: Storage, folder: str) -> set[str]:
    """Names of the objects in a folder, without it."""
    return {entry.name.rpartition("/")[2] for entry in storage.list(folder)}


def trained_version(storage: Storage, kind: Kind) -> tuple[int, datetime | None]:
    """(size, time) of the trained index, so that the cached one of a deleted folder is not used."""
    found = next(iter(storage.list(f"{staged_folder(kind)}/trained")), None)
    return (found.size, found.modified_at) if found else (0, None)


@lru_cache(maxsize=2)
def cached_index(storage: Storage, name: str, size: int, modified_at: datetime | None) -> Any:  # noqa: ARG001 (key)
    """`read_index`, cached for the process; `trained_version` gives the size and the time."""
    return read_index(storage, name)


def read_index(storage: Storage, name: str) -> Any:
    """The trained index.

    Raises:
        RunError: it is missing or damaged.
    """
    content = storage.read(name)
    if content is None:
        msg = f"{storage.uri}/{name} is missing: run the same command again"
        raise RunError(msg)
    return decode_index(content, f"{storage.uri}/{name}")


@contextmanager
def workspace(storage: Storage, folder: str) -> Iterator[Path]:
    """A folder for large files: of a local index on its own disk, else in the temporary folder of the machine."""
    parent = Path(storage.uri, folder) if storage.is_local else None
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="varve-", dir=parent) as path:
        yield Path(path)


def promote(storage: Storage, staged: str, name: str) -> None:
    """Give a finished file its name. It keeps the staged one, so this may be repeated."""
    if not storage.is_local:
        sizes = {entry.name: entry.size for entry in storage.list(staged.rpartition("/")[0])}
        if (size := sizes.get(staged)) is None:
            msg = f"{storage.uri}/{staged} is missing: run the same command again"
            raise RunError(msg)
        starts = range(0, size, _COPY_BYTES)
        storage.write(
            name, size, lambda: (storage.read(staged, at, min(at + _COPY_BYTES, size)) or b"" for at in starts)
        )
        return
    source, final = Path(storage.uri, staged), Path(storage.uri, name)
    if final.exists() and final.samefile(source):
        return
    with TemporaryDirectory(prefix="varve-", dir=source.parent) as scratch:
        link = Path(scratch, name)
        link.hardlink_to(source)
        link.replace(final)
