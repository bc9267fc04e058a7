"""Writes the keys of a run's parts to a few sorted files, so that they are looked up without opening each part.

Knows nothing of the destination's files. Invariants: a file is named by the parts whose keys it holds; parts with near
keys share a file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from varve.backfill.keys.stale_keys import KeyFile, read_keys_in, write_keys
from varve.backfill.run_paths import object_name
from varve.engine.parallel import Spread
from varve.lake.table import NewFile
from varve.storage.object_store import Storage

_FILE_KEYS = 500_000


def collect_part_keys(
    folder: str, parts: Sequence[NewFile], key: str, storage: Storage, spread: Spread
) -> list[KeyFile]:
    """The keys of parts, in sorted files in the order of their names.

    Args:
        folder: of the table's runs, see `FeatureTable.folder`.
        parts: of the run, below its storage.
        key: name of the key column.
        storage: of the run.
        spread: runs the tasks.

    Raises:
        RunError: a part is missing or cannot be read, or the store failed.
    """
    work = partial(_write_group, folder=folder, key=key, storage=storage)
    files = spread(work, list(_group_parts([part for part in parts if part.num_rows])))
    return sorted(files, key=lambda file: file.name)


def _group_parts(parts: list[NewFile]) -> Iterator[list[NewFile]]:
    """Groups of parts whose keys are near each other."""
    group: list[NewFile] = []
    num_rows = 0
    for part in _by_key(parts):
        if group and num_rows + part.num_rows > _FILE_KEYS:
            yield group
            group, num_rows = [], 0
        group.append(part)
        num_rows += part.num_rows
    if group:
        yield group


def _by_key(parts: list[NewFile]) -> list[NewFile]:
    ordered = sorted(parts, key=lambda part: part.path)
    least: list[Any] = [part.key_range[0] for part in ordered if part.key_range]
    if len(least) < len(ordered):
        return ordered
    return [ordered[at] for at in sorted(range(len(least)), key=least.__getitem__)]


def _write_group(parts: list[NewFile], *, folder: str, key: str, storage: Storage) -> KeyFile:
    named = "\n".join(f"{part.path} {part.num_rows}" for part in parts)
    name = f"_varve/keys/{hashlib.sha256(named.encode()).hexdigest()[:32]}.parquet"
    keys = [
        array
        for part in parts
        for array in read_keys_in(storage, object_name(folder, storage, part.path), key, part.file_bytes, None)
    ]
    return write_keys(storage, name, pa.concat_arrays(keys))
