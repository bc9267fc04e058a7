"""Selections and copies on real tables, without a model: the features follow all changes of the source."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from tests.lake.backends import Backend, rows
from tests.lake.features import COLUMNS, Features, definition, feature_rows, features_of
from varve.backfill.copies import copy_live_rows
from varve.backfill.diff import DiffRequest, select_rows
from varve.cluster.connection import start_ray
from varve.config.compute import Compute
from varve.config.table_address import parse_table_address
from varve.engine.parallel import Spread, in_threads
from varve.engine.ray_tasks import spread
from varve.lake.open_table import open_table
from varve.lake.table import Change, NewFile, Table
from varve.lake.text_hash import TEXT_HASH, hash_texts
from varve.output.part_layout import PartLayout, encode_table_file, key_range
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

SIBLINGS = ["iceberg-sqlite", "iceberg-rest", "delta-disk", "delta-s3"]


@dataclass
class Lake:
    """A source and its features.

    Attributes:
        backend: that has both.
        spread: runs the tasks.
        since: version that the features are in step with.
        counts: of the last run.
    """

    backend: Backend
    spread: Spread = in_threads
    since: int | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, *, deletes="follow") -> None:
        """Write key, hash and a vector of the selected rows; replace the stale ones; commit."""
        source, features = self.source, features_of(self.backend)
        features.table.prepare(definition())
        version, head = source.pin(None).version, features.head()
        request = DiffRequest(source, version, self.since, features.table, head, "doc_id", ("body",), deletes)
        storage = Storage(f"{features.table.folder}/run{version}-{deletes}")
        selection = select_rows(request, storage, self.spread)
        ids = features.table.field_ids()
        layout = PartLayout(tuple(COLUMNS.names), "doc_id", ids, fixed_binary=bool(ids))
        parts = [self._write(features, selection, shard, version, layout) for shard in range(len(selection.files))]
        arguments = (parts, selection, layout, storage, self.spread)
        replaced = copy_live_rows(features.table, features.head(), "doc_id", *arguments)
        change: Change = features.change(version or 0, [*parts, *replaced.adds], replaced.removes)
        features.table.stage(change)
        features.table.commit(change)
        self.since, self.counts = version, dict(selection.counts)

    @property
    def source(self) -> Table:
        return open_table(parse_table_address(self.backend.address))

    def _write(self, features: Features, selection: RowSelection, shard: int, version, layout: PartLayout) -> NewFile:
        selected = selection.files[shard]
        file = next(each for each in self.source.files(version) if each.path == selected.path)
        texts = pa.concat_tables(self.source.read(version, file, ["doc_id", "body"]))
        positions = selection.positions(shard)
        texts = texts if positions is None else texts.take(pa.array(positions))
        encoded = feature_rows(texts["doc_id"].to_pylist())
        encoded = encoded.set_column(2, COLUMNS.field(TEXT_HASH), hash_texts([texts["body"]]))
        content, name = encode_table_file(encoded, layout), f"data/part-{shard:05d}.parquet"
        assert selection.storage.create(name, content)
        root = f"{features.table.folder}/{selection.storage.uri.rpartition('/')[2]}"
        return NewFile(f"{root}/{name}", len(encoded), len(content), "[]", key_range(encoded["doc_id"]))

    def check(self) -> None:
        """The features have each key of the source once, with the hash of its text, and a vector of its own."""
        texts = self.backend.read(self.backend.address).sort_by("doc_id")
        found = self.backend.read(self.backend.features_address).sort_by("doc_id")
        assert found["doc_id"].to_pylist() == texts["doc_id"].to_pylist()
        assert found[TEXT_HASH].to_pylist() == hash_texts([texts["body"]]).to_pylist()
        assert [vector[0] for vector in found["embedding"].to_pylist()] == found["doc_id"].to_pylist()


def counts(new=0, changed=0, unchanged=0, removed=0):
    return {"new": new, "changed": changed, "unchanged": unchanged, "removed": removed}


def change_and_run(lake: Lake, expected: dict, *changes: Callable[[], None]) -> None:
    for change in changes:
        change()
    lake.run()
    lake.check()
    assert lake.counts == expected


@pytest.mark.parametrize("backend", SIBLINGS, indirect=True)
def test_features_follow_appends_updates_deletes_and_compactions(backend):
    lake = Lake(backend)
    backend.create(rows(range(40)), partition="lang")
    backend.append(rows(range(40, 60)))
    change_and_run(lake, counts(new=60))
    change_and_run(lake, counts(new=10, unchanged=60), lambda: backend.append(rows(range(60, 70))))
    change_and_run(lake, counts(changed=3, unchanged=67), lambda: backend.update(rows([3, 41, 61], "other {}")))
    change_and_run(lake, counts(unchanged=66, removed=4), lambda: backend.delete([0, 3, 50, 69]))
    change_and_run(lake, counts(unchanged=66), backend.compact)
    change_and_run(
        lake,
        counts(new=1, changed=2, unchanged=63, removed=1),
        lambda: backend.update(rows([1, 2], "again {}")),
        lambda: backend.append(rows([100])),
        lambda: backend.delete([4]),
        backend.compact,
    )
    change_and_run(lake, counts(removed=66), lambda: backend.delete([*range(70), 100]))


@pytest.mark.parametrize("backend", ["delta-disk"], indirect=True)
def test_tasks_of_ray_select_and_copy_the_same_rows(backend):
    start_ray(Compute())
    lake = Lake(backend, spread)
    backend.create(rows(range(40)), partition="lang")
    change_and_run(lake, counts(new=40))
    backend.update(rows([3, 30], "other {}"))
    change_and_run(lake, counts(changed=2, unchanged=37, removed=1), lambda: backend.delete([5]))
