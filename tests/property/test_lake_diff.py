"""Random histories of a source: after each run the features are those of its rows; only changed rows are encoded."""

from itertools import count

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.lake_tables import (
    MemoryFeatureTable,
    MemoryTable,
    documents,
    encode,
    hashes_of,
    layout,
    write_features,
)
from varve.backfill import key_buckets
from varve.backfill.copies import copy_live_rows
from varve.backfill.diff import DiffRequest, select_rows
from varve.engine.parallel import in_threads
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage

KEYS = st.integers(0, 60)
TEXTS = st.text("ab", max_size=2) | st.none()
_tables = count()


@pytest.fixture(autouse=True, scope="module")
def small_buckets():
    """Sizes at which a few rows make several buckets and objects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_buckets, "BUCKET_ROWS", 8)
        patch.setattr(key_buckets, "CHUNK_ROWS", 5)
        yield


class Histories(RuleBasedStateMachine):
    """A source that is changed in any way, and runs in between."""

    @initialize(deletes=st.sampled_from(["follow", "keep"]), strings=st.booleans(), known=st.booleans())
    def create(self, deletes, strings, known):
        self.folder = f"memory://lake{next(_tables)}"
        self.source = MemoryTable(counts_rows=known, has_statistics=known)
        self.features = MemoryFeatureTable(self.folder, has_statistics=known)
        self.deletes, self.strings = deletes, strings
        self.since: int | None = None
        self.names = count()

    def _rows(self, texts: dict):
        named = {f"key-{key:09d}" if self.strings else key: text for key, text in texts.items()}
        return documents(named, pa.string() if self.strings else pa.int64())

    def _all_rows(self) -> pa.Table:
        return self.source.rows() if self.source.versions[self.source.head] else self._rows({})

    def _texts(self) -> dict:
        """Number → text of the source."""
        rows = self._all_rows()
        keys = (int(str(key).removeprefix("key-")) for key in rows["doc_id"].to_pylist())
        return dict(zip(keys, rows["body"].to_pylist(), strict=True))

    def _file(self, path: str) -> dict:
        rows = self.source.versions[self.source.head][path][1]
        keys = (int(str(key).removeprefix("key-")) for key in rows["doc_id"].to_pylist())
        return dict(zip(keys, rows["body"].to_pylist(), strict=True))

    @rule(texts=st.dictionaries(KEYS, TEXTS, min_size=1, max_size=12))
    def insert(self, texts):
        known = self._texts()
        new = {key: text for key, text in texts.items() if key not in known}
        self.source.change(adds={f"{next(self.names):04d}.parquet": self._rows(new)})

    @rule(texts=st.dictionaries(KEYS, TEXTS, max_size=6), copies=st.booleans())
    def update(self, texts, copies):
        """Copy-on-write replaces files; otherwise rows are masked, and a file has the new ones."""
        removes, adds, updated = [], {}, {}
        for path in self.source.versions[self.source.head]:
            rows = self._file(path)
            if mine := {key: text for key, text in texts.items() if key in rows}:
                updated |= mine
                if copies:
                    removes.append(path)
                    adds[f"{next(self.names):04d}.parquet"] = self._rows(rows | mine)
                else:
                    adds[path] = self._rows({key: text for key, text in rows.items() if key not in mine})
        if updated and not copies:
            adds[f"{next(self.names):04d}.parquet"] = self._rows(updated)
        self.source.change(removes=removes, adds=adds)

    @rule(keys=st.sets(KEYS, max_size=20))
    def delete(self, keys):
        adds = {}
        for path in self.source.versions[self.source.head]:
            rows = self._file(path)
            if keys & set(rows):
                adds[path] = self._rows({key: text for key, text in rows.items() if key not in keys})
        self.source.change(adds=adds)

    @rule()
    def compact(self):
        paths = list(self.source.versions[self.source.head])
        self.source.change(removes=paths, adds={f"{next(self.names):04d}.parquet": self._rows(self._texts())})

    @precondition(lambda self: self.features.versions[self.features.head])
    @rule()
    def compact_the_features(self):
        self.features.commit(*self._compaction())

    def _compaction(self):
        head = self.features.head
        files = self.features.files(head)
        storage = Storage(f"{self.folder}/compaction{head}")
        names = list(layout().columns)
        rows = pa.concat_tables(table for file in files for table in self.features.read(head, file, names))
        return [write_features(storage, "data/all.parquet", rows)], files

    @precondition(lambda self: self.since not in {None, self.source.head})
    @rule()
    def expire(self):
        self.source.expired.add(self.since)

    @precondition(lambda self: self.since not in {None, self.source.head})
    @rule()
    def vacuum(self):
        """Files of the old version are removed, its log stays."""
        self.source.gone_files |= {(self.since, path) for path in self.source.versions[self.since]}

    @rule(full=st.booleans(), moves=st.booleans(), twice=st.booleans())
    def run(self, full, moves, twice):
        source, features = self.source, self.features
        version, before, counted = source.head, features.content(), source.counts_rows
        wanted = hashes_of(self._all_rows(), "doc_id", ["body"])
        storage = Storage(f"{self.folder}/run{next(self.names)}")
        since = None if full else self.since
        request = DiffRequest(source, version, since, features, features.head, "doc_id", ("body",), self.deletes)
        selection = select_rows(request, storage, in_threads)
        if twice:
            assert select_rows(request, storage, in_threads) == selection
        assert RowSelection.load(storage) == selection
        encoded = {pair for pair in wanted.items() if before.get(pair[0]) != pair[1] or pair[0] not in before}
        assert sum(file.num_rows or 0 for file in selection.files) == len(encoded)
        assert selection.counts["new"] == len(set(wanted) - set(before))
        assert selection.counts["changed"] == len(encoded) - selection.counts["new"]
        assert selection.counts["removed"] == (len(set(before) - set(wanted)) if self.deletes == "follow" else 0)
        if counted:
            assert sum(selection.counts[name] for name in ("new", "changed", "unchanged")) == len(wanted)
        parts = encode(source, version, ["body"], selection)
        if moves and features.versions[features.head]:
            features.commit(*self._compaction())
        replaced = copy_live_rows(features, features.head, "doc_id", parts, selection, layout(), storage, in_threads)
        features.commit([*parts, *replaced.adds], replaced.removes)
        assert features.content() == (wanted if self.deletes == "follow" else before | wanted)
        assert {each.name for each in storage.list("_varve/diff") if "/buckets/" in each.name} == set()
        self.since = version


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
