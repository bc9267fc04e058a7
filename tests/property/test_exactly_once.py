"""Drivers and workers that write, crash, repeat, resume and publish in any order: each row once, no part changes."""

from itertools import count

import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.part_file import part_name, write_part
from varve.output.part_table import PartTable
from varve.ranges import Missing, Range
from varve.storage.object_store import Storage
from varve.verification.part_check import check_part

SCHEMA = pa.schema(
    {
        "num_tokens": pa.int32(), "truncated": pa.bool_(), "error": pa.string(), "shard": pa.int32(), "row": pa.int64()
    },
    metadata={"varve": '{"fingerprint": "print", "columns": []}'},
)  # fmt: skip
_outputs = count()


def features(rows: Range) -> pa.Table:
    """The features of a range; every worker computes the same bits."""
    numbers = range(rows.start, rows.stop)
    content = [[7] * len(numbers), [False] * len(numbers), [None] * len(numbers), [rows.shard] * len(numbers), numbers]
    return pa.table([pa.array(c, f.type) for c, f in zip(content, SCHEMA, strict=True)], schema=SCHEMA)


class Runs(RuleBasedStateMachine):
    """Any number of drivers and workers of one job, which share nothing but the listing."""

    @initialize(shard_rows=st.lists(st.integers(0, 12), min_size=1, max_size=3), rows_per_part=st.integers(1, 5))
    def plan(self, shard_rows, rows_per_part):
        self.storage = Storage(f"memory://{next(_outputs)}")
        self.shard_rows, self.rows_per_part = shard_rows, rows_per_part
        self.work: list[Range] = []  # assigned to workers, including workers of dead runs
        self.bytes: dict[str, bytes] = {}  # content of every part when it was first listed
        self.published: bytes | None = None

    def _committed(self):
        return manifest.committed(self.storage)

    def _missing(self) -> dict[int, Missing]:
        return manifest.missing(self._committed(), len(self.shard_rows), self.rows_per_part, "here")

    @rule()
    def start_a_run(self):
        """A driver lists the parts and assigns the missing ones; it knows nothing of earlier drivers."""
        for shard, missing in self._missing().items():
            for start in range(0, self.shard_rows[shard] + 1, self.rows_per_part):
                if missing.wants(start):
                    stop = min(start + self.rows_per_part, self.shard_rows[shard])
                    self.work.append(Range(shard, start, stop))

    @precondition(lambda self: self.work)
    @rule(data=st.data(), keeps=st.booleans())
    def write(self, data, keeps):
        """A worker commits a part; with `keeps` the task runs again later, as after a lost reply."""
        rows = data.draw(st.sampled_from(self.work))
        part = write_part(self.storage, rows, features(rows), "print")
        assert part.range == rows
        if not keeps:
            self.work.remove(rows)

    @precondition(lambda self: self.work)
    @rule()
    def crash(self):
        """All assigned work is lost."""
        self.work.clear()

    @rule()
    def publish(self):
        """A driver publishes if and only if all parts are committed."""
        committed = self._committed()
        gaps = manifest.coverage_gaps(committed, len(self.shard_rows), self.rows_per_part, self.shard_rows)
        assert bool(gaps) == bool(self._missing())
        if gaps:
            return
        parts = manifest.read_parts(self.storage, committed)
        record, first = manifest.publish(self.storage, _manifest(self.storage, parts, str(next(_outputs))))
        content = self.storage.read(manifest.MANIFEST_NAME)
        assert self.published in (None, content)
        assert first == (self.published is None)
        self.published = content
        assert record == manifest.read_manifest(self.storage)
        rows = sorted((part.shard, row) for part in record.parts for row in range(part.start, part.stop))
        assert rows == [(shard, row) for shard, rows in enumerate(self.shard_rows) for row in range(rows)]
        assert all(not any(check_part(self.storage, part).values()) for part in record.parts)

    @invariant()
    def nothing_committed_changes(self):
        if not hasattr(self, "storage"):
            return
        for parts in self._committed().values():
            for rows in parts:
                content = self.storage.read(part_name(rows))
                assert content == self.bytes.setdefault(part_name(rows), content)
        assert self.bytes.keys() <= {part_name(rows) for parts in self._committed().values() for rows in parts}

    def teardown(self):
        """In any state, one undisturbed run completes the output."""
        self.work.clear()
        self.start_a_run()
        for rows in self.work:
            write_part(self.storage, rows, features(rows), "print")
        self.publish()
        assert self.published is not None


def _manifest(storage: Storage, parts: PartTable, finished_at: str) -> Manifest:
    nothing: dict = {name: {} for name in ("counts", "storage", "seconds", "stages", "encoder", "canary")}
    counted = dict.fromkeys(("num_rows", "num_tokens", "num_errors", "num_truncated", "file_bytes"), 0)
    settled: dict = {name: {} for name in ("versions", "job", "resolved")}
    made = {"path": storage.uri, "fingerprint": "print", "started_at": "", "finished_at": finished_at}
    return Manifest(**made, **nothing, **counted, **settled, parts=parts)


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
