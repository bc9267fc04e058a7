"""What Varve needs of a table, whatever its format: pinned versions, files, rows, and one atomic commit.

Knows nothing of models, features or Ray. Invariants: a version's files and rows never change; objects of these classes
can be pickled and hold no credential, so workers open the table again from the environment of their node; what a commit
did is found by reading the table, never by trusting an answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from varve.config.table_address import TableAddress
from varve.errors import RunError


class HeadMovedError(RunError):
    """Another commit came first: the change must be made again for the new head of the table."""


class VersionExpiredError(RunError):
    """A version, or files of it, were removed by the table's maintenance."""


@dataclass(frozen=True, slots=True)
class PartitionField:
    """One field of a partition specification.

    Attributes:
        name: of the field; for Delta that of the column.
        column: from which it is computed.
        transform: identity, bucket[16], truncate[4], day, ... as Iceberg writes them.
    """

    name: str
    column: str
    transform: str = "identity"


@dataclass(frozen=True, slots=True)
class Pin:
    """A version of a table that a job reads.

    Attributes:
        uuid: of the table; another table at the same address has another one.
        version: Iceberg's snapshot id, Delta's or Lance's version; None for an Iceberg table without a snapshot.
        schema: the columns of this version, with plain types: string for all kinds of strings, binary likewise.
        partition: how new files of the table are partitioned.
    """

    uuid: str
    version: int | None
    schema: pa.Schema
    partition: tuple[PartitionField, ...] = ()


@dataclass(frozen=True, slots=True)
class TableFile:
    """One data file of a version with its deletes applied: the rows that readers of the table see, in their order.

    Attributes:
        path: as the table names it, unique in a version: an absolute URI; for Lance "fragment/12".
        identity: equal in two versions if the file has the same rows in both.
        num_rows: without deleted rows; None if only reading tells.
        file_bytes: of the data file.
        partition: JSON of the partition's values in the order of the table's fields; "[]" if it has no partition.
        key_range: bounds of the key column, both inclusive; None if the table has no such statistics.
        task: what the format needs to read the file without listing the version again.
    """

    path: str
    identity: str
    num_rows: int | None
    file_bytes: int
    partition: str = "[]"
    key_range: tuple[Any, Any] | None = None
    task: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A Parquet file that a commit adds; it exists and is complete.

    Attributes:
        path: absolute URI, below the `folder` of the table.
        num_rows: in it.
        file_bytes: its size.
        partition: see `TableFile`.
        key_range: least and greatest key; None for an empty file.
    """

    path: str
    num_rows: int
    file_bytes: int
    partition: str = "[]"
    key_range: tuple[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What the rows of a feature table are in step with. It is written in the commit that makes it true.

    Attributes:
        feature_set: SHA-256 of all that a vector is a function of, without the source.
        source_uuid: of the source table.
        source_version: of the source table.
        run: SHA-256 of the run that committed.
        folder: of that run's output, for `varve verify`.
    """

    feature_set: str
    source_uuid: str
    source_version: int
    run: str
    folder: str


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does to a feature table.

    Attributes:
        head: the version that it is made for; None for a table without a snapshot.
        state: what is true after it.
        adds: files that become part of the table.
        removes: files of `head` that leave it.
        details: strings for the table's history, such as counts of rows.
    """

    head: int | None
    state: State
    adds: Sequence[NewFile] = ()
    removes: Sequence[TableFile] = ()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Definition:
    """The columns and the identity of a feature table.

    Attributes:
        feature_set: see `State`.
        source_uuid: of the source table.
        key: name of the key column.
        schema: columns: the key, kept columns, text_hash, features, columns about rows. Vectors are lists of float32.
        partition: fields; their columns are in `schema`.
    """

    feature_set: str
    source_uuid: str
    key: str
    schema: pa.Schema
    partition: tuple[PartitionField, ...] = ()


class Table(Protocol):
    """A table that can be read at a pinned version."""

    @property
    def address(self) -> TableAddress:
        """Where it is."""
        ...

    def pin(self, at: str | int | None) -> Pin:
        """The current version, or that of a version number, snapshot id, tag, branch or ISO timestamp.

        Raises:
            JobError: there is no such table or version, its format has a feature that cannot be read, or the extra is
                not installed.
        """
        ...

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        """The data files of a version, sorted by path; none for version None.

        Args:
            version: of a pin.
            key: column of which `key_range` is filled in.

        Raises:
            VersionExpiredError: the version is gone.
            JobError: a file has deletes that cannot be applied (equality deletes).
        """
        ...

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The live rows of a file, in order, in tables of at most some thousand rows and of the types of `Pin.schema`.

        A column that the file lacks (added to the table later) is null.

        Raises:
            VersionExpiredError: the file is gone.
            RunError: it cannot be read.
        """
        ...


class FeatureTable(Table, Protocol):
    """A table that holds the features of the rows of another one, one row per key."""

    @property
    def folder(self) -> str:
        """The folder or URI below which files of runs lie."""
        ...

    def exists(self) -> bool:
        """Whether there is a table."""
        ...

    def prepare(self, definition: Definition) -> None:
        """Create the table unless it exists; add columns of the definition that it lacks.

        Raises:
            JobError: the existing table is not one of this definition: another key, feature set, source or partition,
                a column of another type, or a format version that cannot be written (Iceberg v3).
        """
        ...

    def field_ids(self) -> dict[str, int]:
        """Path of each column → field id: {"embedding": 4, "embedding.element": 5}; empty if the format has none."""
        ...

    def state(self, feature_set: str) -> State | None:
        """What the table is in step with, read from its current metadata; None if it has no such features."""
        ...

    def states(self) -> list[State]:
        """The state of each feature set of the table."""
        ...

    def stage(self, change: Change) -> int | None:
        """Make the change readable as a version that readers of the table do not see; None if the format cannot.

        Staging the same change again does nothing. What interrupted runs of the same feature set staged is removed.

        Raises:
            HeadMovedError: the table's head is not `change.head`.
            RunError: the catalog or store failed.
        """
        ...

    def commit(self, change: Change) -> int:
        """Publish a change by one compare-and-swap; returns the table's version that has it.

        A change whose state is already that of the table is not committed again. A change without files commits the
        state alone.

        Raises:
            HeadMovedError: the table's head is not `change.head`; nothing was changed.
            RunError: the catalog or store failed; nothing is known to be lost, and the same call finds out.
        """
        ...

    def unstage(self, change: Change) -> None:
        """Remove what `stage` made."""
        ...
