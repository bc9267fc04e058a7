"""Random histories of a source: after each run the features are those of its rows; only changed rows are encoded."""

from itertools import count
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lake_tables import (
    MemoryFeatureTable,
    MemoryTable,
    compaction,
    documents,
    encode,
    hashes_of,
    layout,
)
from varve.backfill.copies import copy_live_rows
from varve.backfill.diff import DiffRequest, select_rows
from varve.backfill.keys import key_buckets
from varve.engine.parallel import in_threads
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

KEYS = range(-20, 30)
TEXTS = (None, "", "a", "b", "ab", "ba")
_tables = count()


@pytest.fixture(autouse=True, scope="module")
def small_buckets():
    """Sizes at which a few rows make several buckets and objects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_buckets, "BUCKET_ROWS", 8)
        patch.setattr(key_buckets, "CHUNK_ROWS", 5)
        yield


class History:
    """A source that is changed in any way, runs in between, and a destination."""

    def __init__(self, seed):
        self.random = Random(seed)
        deletes, is_string = self.random.choice(["follow", "keep"]), self.happens(0.5)
        has_statistics = self.happens(0.5)
        self.folder = f"memory://lake{next(_tables)}"
        self.source = MemoryTable(counts_rows=has_statistics, has_statistics=has_statistics)
        self.features = MemoryFeatureTable(self.folder, has_statistics=has_statistics)
        self.deletes, self.is_string = deletes, is_string
        self.since: int | None = None
        self.names = count()

    def happens(self, probability):
        return self.random.random() < probability

    def sample(self, keys):
        return set(self.random.sample(sorted(keys), self.random.randint(0, len(keys) // 2)))

    def path(self):
        return f"{next(self.names):04d}.parquet"

    def table(self, texts: dict) -> pa.Table:
        named = {f"key-{key + 50:09d}" if self.is_string else key: text for key, text in texts.items()}
        return documents(named, pa.string() if self.is_string else pa.int64())

    def texts(self, rows: pa.Table) -> dict:
        keys = rows["doc_id"].to_pylist()
        numbers = (int(key.removeprefix("key-")) - 50 if self.is_string else key for key in keys)
        return dict(zip(numbers, rows["body"].to_pylist(), strict=True))

    def files(self) -> dict[str, dict]:
        return {path: self.texts(rows) for path, (_, rows) in self.source.versions[self.source.head].items()}

    def known(self) -> dict:
        return {key: text for texts in self.files().values() for key, text in texts.items()}

    def insert(self):
        known = self.known()
        new = {key: self.random.choice(TEXTS) for key in self.sample(KEYS) if key not in known}
        self.source.change(adds={self.path(): self.table(new)})

    def update(self):
        """Copy-on-write replaces files; otherwise rows are masked, and another file has the new ones."""
        texts = {key: self.random.choice(TEXTS) for key in self.sample(self.known())}
        removes, adds, is_copied = [], {}, self.happens(0.5)
        for path, rows in self.files().items():
            mine = {key: texts[key] for key in rows if key in texts}
            if mine and is_copied:
                removes.append(path)
                adds[self.path()] = self.table(rows | mine)
            elif mine:
                adds[path] = self.table({key: text for key, text in rows.items() if key not in mine})
        if not is_copied:
            adds[self.path()] = self.table(texts)
        self.source.change(removes=removes, adds=adds)

    def delete(self):
        keys = self.sample(KEYS)
        adds = {
            path: self.table({key: text for key, text in rows.items() if key not in keys})
            for path, rows in self.files().items()
            if keys & set(rows)
        }
        self.source.change(adds=adds)

    def compact(self):
        known = self.known()
        self.source.change(removes=list(self.files()), adds={self.path(): self.table(known)})

    def compact_features(self):
        if self.features.versions[self.features.head]:
            self.features.commit(*compaction(self.features, f"{self.folder}/compaction{next(self.names)}"))

    def expire(self):
        """The log of the old version is removed, or its files alone."""
        if self.since not in {None, self.source.head} and self.happens(0.5):
            self.source.expired.add(self.since)
        elif self.since not in {None, self.source.head}:
            now = {identity for identity, _ in self.source.versions[self.source.head].values()}
            old = self.source.versions[self.since].items()
            self.source.gone_files |= {(self.since, path) for path, (identity, _) in old if identity not in now}

    def run(self):
        source, features, is_full = self.source, self.features, self.happens(0.2)
        version, before = source.head, features.content()
        wanted = hashes_of(self.table(self.known()), "doc_id", ["body"])
        storage, since = Storage(f"{self.folder}/run{next(self.names)}"), None if is_full else self.since
        request = DiffRequest(source, version, since, features, features.head, "doc_id", ("body",), self.deletes)
        selection = select_rows(request, storage, in_threads)
        assert select_rows(request, storage, in_threads) == RowSelection.load(storage) == selection
        encoded = {key for key, text_hash in wanted.items() if before.get(key) != text_hash}
        assert sum(file.num_rows or 0 for file in selection.files) == len(encoded)
        assert selection.counts["new"] == len(set(wanted) - set(before))
        assert selection.counts["changed"] == len(encoded & set(before))
        assert selection.counts["removed"] == (len(set(before) - set(wanted)) if self.deletes == "follow" else 0)
        if source.counts_rows:
            assert sum(selection.counts[name] for name in ("new", "changed", "unchanged")) == len(wanted)
        assert not [each.name for each in storage.list("_varve/diff") if "/buckets/" in each.name]
        parts = encode(source, version, ["body"], selection)
        assert {key for part in parts for key in features.keys_of(part)} == encoded
        if self.happens(0.4):
            self.compact_features()  # another commit comes first
        replaced = copy_live_rows(features, features.head, "doc_id", parts, selection, layout(), storage, in_threads)
        features.commit([*parts, *replaced.adds], replaced.removes)
        assert features.content() == (wanted if self.deletes == "follow" else before | wanted)
        self.since = version


CHANGES = [History.insert, History.update, History.delete, History.compact, History.compact_features]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_runs_after_any_changes_leave_the_features_of_the_source(seed):
    history = History(seed)
    for _ in range(history.random.randint(0, 3)):
        history.insert()
    history.run()
    for _ in range(history.random.randint(1, 3)):
        for change in history.random.choices(CHANGES, k=history.random.randint(0, 3)):
            change(history)
        if history.happens(0.25):
            history.expire()
        history.run()
