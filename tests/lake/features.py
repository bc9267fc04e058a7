"""A feature table of any format for tests: its definition, files as runs write them, and changes."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pyarrow as pa
import pytest

from tests.lake.backends import Backend, make_backend
from varve.config.table_address import parse_table_address
from varve.lake.open_table import open_feature_table
from varve.lake.table import Change, Definition, FeatureTable, NewFile, PartitionField, State, TableFile
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.storage.object_store import Storage

FEATURE_SET, SOURCE = "f5" * 32, "6fe1-source"
COLUMNS = pa.schema(
    [
        ("lang", pa.string()),
        ("doc_id", pa.int64()),
        ("text_hash", pa.binary(16)),
        ("embedding", pa.list_(pa.float32(), 4)),
        ("num_tokens", pa.int32()),
    ]
)
BY_LANGUAGE = (PartitionField("lang", "lang"),)
KINDS = ("iceberg-sqlite", "iceberg-rest", "delta-disk", "delta-s3")
_NAMES = count()


def definition(**changes: Any) -> Definition:
    """The definition of a feature table without partitions, with changes."""
    plain = Definition(feature_set=FEATURE_SET, source_uuid=SOURCE, key="doc_id", schema=COLUMNS)
    return replace(plain, **changes)


def state(version: int, run: str = "") -> State:
    """In step with this version of the source."""
    return State(FEATURE_SET, SOURCE, version, run or f"run of {version}", f"/out/{version}")


def feature_rows(keys: Iterable[int], lang: str | None = "de") -> pa.Table:
    """Rows whose values are a function of their keys."""
    keys = list(keys)
    columns = [
        pa.array([lang] * len(keys), pa.string()),
        pa.array(keys, pa.int64()),
        pa.array([key.to_bytes(16, "big") for key in keys], pa.binary(16)),
        pa.array([[float(key)] * 4 for key in keys], COLUMNS.field("embedding").type),
        pa.array([key % 7 for key in keys], pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=COLUMNS)


@dataclass(frozen=True)
class Features:
    """A feature table.

    Attributes:
        backend: that has it.
        table: its handle.
    """

    backend: Backend
    table: FeatureTable

    def write(self, keys: Iterable[int], partition: str = "[]", lang: str | None = "de") -> NewFile:
        """A file of rows in the form that runs write, not yet part of the table."""
        ids = self.table.field_ids()
        rows = feature_rows(keys, lang)
        layout = PartLayout(tuple(COLUMNS.names), "doc_id", ids, fixed_binary=bool(ids))
        content = encode_table_file(rows, layout)
        name = f"0123456789abcdef/data/part-{os.getpid()}-{next(_NAMES):05d}.parquet"
        assert Storage(self.table.folder).create(name, content)
        return NewFile(f"{self.table.folder}/{name}", len(rows), len(content), partition, key_range(rows["doc_id"]))

    def head(self) -> int | None:
        """The current version."""
        return self.table.pin(None).version

    def change(self, version: int, adds: Sequence[NewFile] = (), removes: Sequence[TableFile] = ()) -> Change:
        """A change for the current head, after which the table is in step with this version of the source."""
        return Change(self.head(), state(version), adds, removes, {"rows-new": "3"})

    def add(self, version: int, keys: Iterable[int]) -> int:
        """Commit a file of new rows."""
        return self.table.commit(self.change(version, [self.write(keys)]))

    def keys(self) -> list[int]:
        """The keys that readers see, sorted; by the format's own library."""
        return sorted(self.backend.read(self.backend.features_address)["doc_id"].to_pylist())


def features_of(backend: Backend) -> Features:
    """The feature table of a backend, which need not exist."""
    return Features(backend, open_feature_table(parse_table_address(backend.features_address)))


@pytest.fixture(params=KINDS)
def features(request, tmp_path, monkeypatch) -> Features:
    """A feature table that does not exist yet."""
    return features_of(make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch))


@pytest.fixture
def prepared(features) -> Features:
    """An empty feature table."""
    features.table.prepare(definition())
    return features
