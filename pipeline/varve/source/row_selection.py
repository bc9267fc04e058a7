"""Which rows of a table's files a run encodes, as an earlier step of the run found out; stored in the run's folder.

    _varve/diff/selection.json              the files with selected rows, in the order of shards, and the counts
    _varve/diff/HEAD/rows-SSSSS.parquet     column `position`: the selected live rows of shard S, ascending

Invariants: selection.json is written once, last, and decides for all later runs of the job; a shard without an object
of positions is read whole.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.errors import RunError
from varve.storage.object_store import Storage

SELECTION_NAME = "_varve/diff/selection.json"


@dataclass(frozen=True, slots=True)
class SelectedFile:
    """One file of a table's version, one shard of the run.

    Attributes:
        path: see `lake.table.TableFile`.
        identity: likewise.
        num_rows: that are encoded; None if only reading tells.
        is_partial: whether its positions are stored; otherwise all rows are encoded.
        sha256: of the positions, as int64 in little endian; empty if all rows are encoded.
    """

    path: str
    identity: str
    num_rows: int | None
    is_partial: bool = False
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ShardSelection:
    """The selected rows of one shard.

    Attributes:
        storage: of the run.
        prefix: see `RowSelection`.
        shard: its number.
        is_partial: see `SelectedFile`.
    """

    storage: Storage
    prefix: str
    shard: int
    is_partial: bool

    def positions(self) -> NDArray[np.int64] | None:
        """(rows of the shard,) positions among the live rows of its file; None: all rows.

        Raises:
            RunError: they cannot be read.
        """
        if not self.is_partial:
            return None
        name = rows_name(self.prefix, self.shard)
        if (content := self.storage.read(name)) is None:
            msg = f"{self.storage.uri}/{name} is missing: delete {self.storage.uri} and run the same command again"
            raise RunError(msg)
        return pq.read_table(pa.BufferReader(content))["position"].to_numpy()


@dataclass(frozen=True, slots=True)
class RowSelection:
    """The selected rows of a run.

    Attributes:
        storage: of the run.
        prefix: folder of the objects of positions, below the storage.
        files: shard s reads file s; files without selected rows are not among them.
        counts: "new", "changed", "unchanged" and "removed" rows of the source.
    """

    storage: Storage
    prefix: str
    files: tuple[SelectedFile, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of the files and their positions."""
        return hashlib.sha256(json.dumps([asdict(file) for file in self.files]).encode()).hexdigest()

    def of_shard(self, shard: int) -> "ShardSelection":
        """Of one shard, for a worker: a selection of very many files is large."""
        return ShardSelection(self.storage, self.prefix, shard, self.files[shard].is_partial)

    def positions(self, shard: int) -> NDArray[np.int64] | None:
        """See `ShardSelection.positions`."""
        return self.of_shard(shard).positions()

    def save(self) -> Self:
        """Write selection.json, unless it exists; returns what is stored then."""
        content = {"prefix": self.prefix, "files": [asdict(each) for each in self.files], "counts": dict(self.counts)}
        if self.storage.create(SELECTION_NAME, json.dumps(content).encode()):
            return self
        return self.load(self.storage) or self

    @classmethod
    def load(cls, storage: Storage) -> Self | None:
        """Read selection.json; None if it does not exist.

        Raises:
            RunError: it cannot be read.
        """
        content = storage.read(SELECTION_NAME)
        if content is None:
            return None
        try:
            stored: dict[str, Any] = json.loads(content)
            files = tuple(SelectedFile(**each) for each in stored["files"])
            return cls(storage, stored["prefix"], files, stored["counts"])
        except (ValueError, KeyError, TypeError) as e:
            msg = f"{storage.uri}/{SELECTION_NAME} cannot be read: {type(e).__name__} {e}"
            raise RunError(msg) from e


def rows_name(prefix: str, shard: int) -> str:
    """The name of the object with the positions of a shard."""
    return f"{prefix}/rows-{shard:05d}.parquet"


def encode_positions(positions: NDArray[np.int64]) -> tuple[bytes, str]:
    """(content of an object of positions, its SHA-256 for `SelectedFile`)."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"position": positions}), buffer, compression="zstd")
    return buffer.getvalue(), hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
