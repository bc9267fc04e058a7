"""Tables in memory with versions and deletes, for tests of what needs only their protocol."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from varve.config.table_address import TableAddress, parse_table_address
from varve.lake.table import NewFile, Pin, TableFile, VersionExpiredError
from varve.lake.text_hash import HASH_TYPE, TEXT_HASH, hash_texts
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

_READ_ROWS = 3  # of a table that `read` yields


@dataclass
class MemoryTable:
    """A source: files are Arrow tables; a delete gives a file another identity.

    `reads` counts the rows that were read of each (path, column).
    """

    key: str = "doc_id"
    versions: dict[int, dict[str, tuple[str, pa.Table]]] = field(default_factory=lambda: {0: {}})
    expired: set[int] = field(default_factory=set)
    gone_files: set[tuple[int, str]] = field(default_factory=set)
    reads: dict[tuple[str, str], int] = field(default_factory=dict)
    has_statistics: bool = True
    counts_rows: bool = True

    @property
    def address(self) -> TableAddress:
        return parse_table_address("iceberg://lake/db.docs")

    @property
    def head(self) -> int:
        return max(self.versions)

    def pin(self, at: str | int | None) -> Pin:
        version = self.head if at is None else int(at)
        schema = next((rows.schema for _, rows in self.versions[version].values()), pa.schema([]))
        return Pin("uuid", version, schema)

    def change(self, *, removes: Sequence[str] = (), adds: Mapping[str, pa.Table] | None = None) -> int:
        """A new version; a file that is added again has other rows and another identity."""
        version = self.head + 1
        files = {path: each for path, each in self.versions[self.head].items() if path not in removes}
        files |= {path: (f"{path}@{version}", rows) for path, rows in (adds or {}).items()}
        self.versions[version] = files
        return version

    def rows(self, version: int | None = None) -> pa.Table:
        """All rows of a version."""
        return pa.concat_tables(rows for _, rows in self.versions[self.head if version is None else version].values())

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        if version is None:
            return []
        if version in self.expired:
            msg = f"version {version} is gone"
            raise VersionExpiredError(msg)
        return [
            TableFile(
                path,
                identity,
                len(rows) if self.counts_rows else None,
                rows.nbytes,
                key_range=key_range(rows[key]) if key and self.has_statistics else None,
            )
            for path, (identity, rows) in sorted(self.versions[version].items())
        ]

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:
        if version is None or (version, file.path) in self.gone_files:
            msg = f"{file.path} is gone"
            raise VersionExpiredError(msg)
        rows = self.versions[version][file.path][1]
        for first in range(0, len(rows), _READ_ROWS):
            table = rows.slice(first, _READ_ROWS).select(columns)
            for name in columns:
                self.reads[file.path, name] = self.reads.get((file.path, name), 0) + len(table)
            yield table


@dataclass
class MemoryFeatureTable:
    """A destination: versions are lists of Parquet files in the folders of runs."""

    folder: str
    key: str = "doc_id"
    versions: dict[int, list[TableFile]] = field(default_factory=lambda: {1: []})
    has_statistics: bool = True
    opened: list[str] = field(default_factory=list)

    @property
    def address(self) -> TableAddress:
        return parse_table_address("iceberg://lake/db.features")

    @property
    def head(self) -> int:
        return max(self.versions)

    def commit(self, adds: Sequence[NewFile], removes: Sequence[TableFile] = ()) -> int:
        known = {file.path for file in self.versions[self.head]}
        removed = {file.path for file in removes}
        assert removed <= known
        assert not {file.path for file in adds} & (known - removed)
        added = [
            TableFile(file.path, file.path, file.num_rows, file.file_bytes, file.partition, file.key_range)
            for file in adds
        ]
        kept = [file for file in self.versions[self.head] if file.path not in removed]
        version = self.head + 1
        self.versions[version] = sorted(kept + added, key=lambda file: file.path)
        return version

    def files(self, version: int | None, key: str | None = None) -> list[TableFile]:
        if version is None:
            return []
        is_known = key is not None and self.has_statistics
        return [file if is_known else replace(file, key_range=None) for file in self.versions[version]]

    def read(self, version: int | None, file: TableFile, columns: Sequence[str]) -> Iterator[pa.Table]:  # noqa: ARG002
        self.opened.append(file.path)
        folder, _, name = file.path.rpartition("/")
        root, _, kind = folder.rpartition("/")
        content = Storage(root).read(f"{kind}/{name}")
        rows = pq.read_table(pa.BufferReader(content), columns=list(columns))
        for first in range(0, len(rows), _READ_ROWS):
            yield rows.slice(first, _READ_ROWS)

    def keys_of(self, file: NewFile) -> list:
        """The keys of a file."""
        listed = TableFile(file.path, file.path, file.num_rows, file.file_bytes)
        return [key for table in self.read(None, listed, [self.key]) for key in table[self.key].to_pylist()]

    def content(self, version: int | None = None) -> dict:
        """Key → hash of each row; fails if a key is in two rows."""
        head = self.head if version is None else version
        tables = [table for file in self.versions[head] for table in self.read(head, file, [self.key, TEXT_HASH])]
        pairs = [
            pair
            for table in tables
            for pair in zip(table[self.key].to_pylist(), table[TEXT_HASH].to_pylist(), strict=True)
        ]
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)


def layout(key: str = "doc_id") -> PartLayout:
    """Of the files of a destination with a key, a hash and a vector."""
    ids = {key: 1, TEXT_HASH: 2, "embedding": 3, "embedding.element": 4}
    return PartLayout((key, TEXT_HASH, "embedding"), key, ids)


def encode(source: MemoryTable, version: int, texts: Sequence[str], selection: RowSelection) -> list[NewFile]:
    """The parts of a run, one for each shard: the selected rows with their hashes and a vector."""
    storage, parts = selection.storage, []
    for shard, file in enumerate(selection.files):
        rows = source.versions[version][file.path][1]
        positions = selection.positions(shard)
        rows = rows if positions is None else rows.take(pa.array(positions))
        assert len(rows) == file.num_rows
        parts.append(write_features(storage, f"data/part-{shard:05d}.parquet", features(rows, source.key, texts)))
    return parts


def features(rows: pa.Table, key: str, texts: Sequence[str]) -> pa.Table:
    """Key, hash and a vector of each row."""
    hashes = hash_texts([rows[name] for name in texts]).cast(HASH_TYPE)
    vectors = pa.array([[1.0, 2.0]] * len(rows), pa.list_(pa.field("element", pa.float32())))
    return pa.table({key: rows[key], TEXT_HASH: hashes, "embedding": vectors})


def write_features(storage: Storage, name: str, rows: pa.Table) -> NewFile:
    """Write rows as a file of the destination."""
    key = rows.schema.names[0]
    content = encode_table_file(rows, layout(key))
    assert storage.create(name, content)
    return NewFile(f"{storage.uri}/{name}", len(rows), len(content), "[]", key_range(rows[key]))


def compaction(table: MemoryFeatureTable, folder: str) -> tuple[list[NewFile], list[TableFile]]:
    """(one file with all rows, the files that it replaces): what maintenance of a table commits."""
    files = table.files(table.head)
    columns = layout(table.key).columns
    rows = pa.concat_tables(rows for file in files for rows in table.read(table.head, file, columns))
    return [write_features(Storage(folder), "data/all.parquet", rows)], files


def hashes_of(rows: pa.Table, key: str, texts: Sequence[str]) -> dict:
    """Key → hash of the rows of a source."""
    hashes = hash_texts([rows[name] for name in texts]).to_pylist()
    return dict(zip(rows[key].to_pylist(), hashes, strict=True))


def documents(texts: Mapping, key_type: pa.DataType | None = None) -> pa.Table:
    """Rows of a source: key → text."""
    keys = pa.array(list(texts), key_type or pa.int64())
    return pa.table({"doc_id": keys, "body": pa.array(list(texts.values()), pa.string())})
