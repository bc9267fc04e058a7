"""A Lance dataset as a table: its fragments are the files.

Knows nothing of features. Invariants: a handle holds the address alone; rows of a fragment come in their physical
order, without deleted rows; a dataset that replaces another one at the same address has another uuid.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa

from varve.config.table_address import TableAddress
from varve.errors import JobError, RunError
from varve.lake.lance.dataset import is_missing, lance_errors, open_latest, open_version
from varve.lake.lance.fragments import describe_fragments, fragment_id, plain_schema
from varve.lake.lance.tag import list_tags
from varve.lake.table import Pin, TableFile, VersionExpiredError

if TYPE_CHECKING:
    from lance import LanceDataset

# Key of the dataset's configuration.
UUID_KEY = "varve.uuid"
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class LanceTable:
    """A Lance dataset, by its address. Implements `lake.table.Table`."""

    address: TableAddress

    @property
    def uri(self) -> str:
        """Path or URI of the dataset."""
        return self.address.name

    def pin(self, at: str | int | None) -> Pin:
        """The latest version, or that of a version number, tag or ISO timestamp (without a zone: UTC).

        The first call records a uuid in the dataset's configuration, which is a commit of its own. Where the dataset
        cannot be written, the uuid is that of the transaction of version 1.

        Raises:
            JobError: there is no such dataset or version, `at` is a branch, or the extra is not installed.
            RunError: it cannot be read.
        """
        latest = open_latest(self.uri)
        uuid = latest.config().get(UUID_KEY)
        if uuid is None:
            uuid = self._record_uuid(latest)
            latest = open_latest(self.uri)
        dataset = latest if at is None else self._open_at(latest, at)
        return Pin(uuid, dataset.version, plain_schema(dataset.schema))

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        """The fragments of a version, sorted by path. See `lake.table.Table`; `key_range` is always None."""
        if version is None:
            return []
        dataset = open_version(self.uri, version)
        with lance_errors(self.uri, "read"):
            return describe_fragments(dataset, key)

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The live rows of a fragment, in order, in tables of at most 4,096 rows."""
        if version is None:
            return
        dataset = open_version(self.uri, version)
        names = list(columns)
        schema = plain_schema(pa.schema([dataset.schema.field(name) for name in names]))
        with self._read_errors(file):
            fragment = dataset.get_fragment(fragment_id(file.path))
            if fragment is None:
                msg = f"{self.uri}: version {version} has no {file.path}"
                raise VersionExpiredError(msg)
            for batch in fragment.to_batches(columns=names, batch_size=_BATCH_ROWS):
                yield pa.Table.from_batches([batch]).select(names).cast(schema)

    @contextmanager
    def _read_errors(self, file: TableFile) -> Iterator[None]:
        try:
            with lance_errors(f"{self.uri}/{file.path}", "read"):
                yield
        except RunError as e:
            if is_missing(e):
                raise VersionExpiredError(str(e)) from e
            raise

    def _record_uuid(self, dataset: "LanceDataset") -> str:
        """Write a uuid to the dataset's configuration; returns the one that it has then."""
        first = self._first_transaction(dataset)
        with suppress(OSError, ValueError, RuntimeError):  # another driver is first, or the dataset cannot be written
            dataset.update_config({UUID_KEY: first or str(uuid4())})
        if stored := open_latest(self.uri).config().get(UUID_KEY, first):
            return stored
        msg = f"{self.uri}: its configuration cannot be written, which must have the key {UUID_KEY}: version 1 is gone"
        raise RunError(msg)

    def _first_transaction(self, dataset: "LanceDataset") -> str | None:
        with suppress(OSError, ValueError, RuntimeError):
            transaction = dataset.read_transaction(1)
            return transaction.uuid if transaction else None
        return None

    def _open_at(self, latest: "LanceDataset", at: str | int) -> "LanceDataset":
        with lance_errors(self.uri, "read"):
            version = self._version_at(latest, at)
        try:
            return open_version(self.uri, version)
        except VersionExpiredError as e:
            msg = f"source.at: {self.uri} has no version {version}: expected one of {_some(_versions(latest))}"
            raise JobError(msg) from e

    def _version_at(self, latest: "LanceDataset", at: str | int) -> int:
        if isinstance(at, int) or at.isdigit():
            return int(at)
        tags = list_tags(latest)
        if at in tags and tags[at]["branch"] is None:
            return int(tags[at]["version"])
        if at in tags or at in latest.branches.list():
            msg = f"source.at: {at!r} of {self.uri} is on a branch: expected a version or a tag of the main branch"
            raise JobError(msg)
        try:
            moment = datetime.fromisoformat(at)
        except ValueError as e:
            msg = f"source.at: {self.uri} has no tag {at!r}: expected a version, an ISO timestamp, or {_some(tags)}"
            raise JobError(msg) from e
        return self._version_before(latest, moment if moment.tzinfo else moment.replace(tzinfo=UTC))

    def _version_before(self, latest: "LanceDataset", moment: datetime) -> int:
        # Lance gives the local time without a zone.
        listed: list[dict[str, Any]] = [dict(each) for each in latest.versions()]
        versions = [each["version"] for each in listed if each["timestamp"].astimezone() <= moment]
        if not versions:
            msg = f"source.at: {self.uri} has no version at {moment.isoformat()}: its oldest one is younger"
            raise JobError(msg)
        return max(versions)


def _versions(dataset: "LanceDataset") -> list[int]:
    return [each["version"] for each in dataset.versions()]


def _some(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join([*shown[:10], "..."] if len(shown) > len(shown[:10]) else shown) or "none"
