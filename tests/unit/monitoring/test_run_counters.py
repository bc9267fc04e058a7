from dataclasses import fields
from itertools import pairwise

import pytest

from varve.monitoring.block import Block
from varve.monitoring.run_counters import RunCounters, Snapshot
from varve.ranges import Range

ROWS = Range(0, 100, 200)


def test_part_that_begins_again_without_an_end_counts_as_lost():
    counters = RunCounters()
    assert [counters.begin("encode", ROWS) for _ in range(3)] == [0, 1, 2]
    assert counters.snapshot().lost == 2
    assert counters.snapshot().under_way == (ROWS,)


def test_part_that_begins_again_after_its_end_is_not_lost():
    counters = RunCounters()
    counters.begin("encode", ROWS)
    counters.end("encode", ROWS)
    assert counters.begin("encode", ROWS) == 0
    assert counters.snapshot().lost == 0
    counters.end("encode", ROWS)
    assert counters.snapshot().oldest_at is None


def test_begins_are_counted_per_stage():
    counters = RunCounters()
    counters.begin("tokenize", ROWS)
    assert counters.begin("encode", ROWS) == 0


def test_block_returns_the_errors_of_the_run_and_whether_to_stop():
    counters = RunCounters()
    assert counters.add(Block(10, 100, 2, reasons={"odd": 2}), ROWS) == (10, 2, {"odd": 2}, False)
    counters.stop()
    assert counters.add(Block(10, 100, 1, reasons={"odd": 1}), ROWS) == (20, 3, {"odd": 3}, True)
    assert counters.stopped()


def test_errors_of_a_part_that_begins_again_count_once():
    counters, other = RunCounters(), Range(1, 0, 100)
    counters.begin("encode", other)
    counters.add(Block(50, 500, 1), other)
    for _ in range(3):  # the worker dies at its second block
        counters.begin("encode", ROWS)
        assert counters.add(Block(50, 500, 5), ROWS).errors == 6
    counters.begin("encode", ROWS)
    assert [counters.add(Block(50, tokens, errors), ROWS).errors for tokens, errors in ((500, 5), (490, 1))] == [6, 7]
    now = counters.snapshot()
    assert (now.rows, now.tokens, now.errors, now.lost) == (150, 1490, 7, 3)


def test_null_texts_and_reasons_of_a_part_that_begins_again_count_once():
    counters = RunCounters()
    for _ in range(3):
        counters.begin("encode", ROWS)
        counters.add(Block(50, 500, 1, null_texts=4, reasons={"odd": 1}), ROWS)
    now = counters.snapshot()
    assert (now.null_texts, now.errors, now.error_reasons) == (4, 1, {"odd": 1})


def test_committed_part_that_is_encoded_again_is_not_counted_again():
    counters = RunCounters()
    counters.begin("encode", ROWS)
    counters.add(Block(100, 1000, 2), ROWS)
    counters.end("encode", ROWS)
    counters.commit(ROWS, file_bytes=1000, retries=0)
    counters.begin("encode", ROWS)  # a node died with its features before the write reported
    assert counters.add(Block(100, 1000, 2), ROWS).errors == 2
    assert counters.snapshot().rows == 100


def counter_values(now: Snapshot) -> dict[str, float]:
    """All values that monitoring exports as counters."""
    values = {field.name: getattr(now, field.name) for field in fields(now)}
    counts = {name: values[name] for name in ("rows", "tokens", "errors", "packs", "parts", "written_bytes", "lost")}
    replicas = {f"replica {number}": count.tokens for number, count in now.by_replica.items()}
    return counts | replicas | now.seconds | {"restarts": now.restarts, "replicas": now.replicas}


def test_no_counter_falls_if_a_replica_dies_and_restarts():
    counters = RunCounters(missing_rows=300)
    assert [counters.join({}, actor, "node") for actor in ("one", "two")] == [0, 1]
    history = [counter_values(counters.snapshot())]
    for replica in (0, 1):
        counters.begin("encode", Range(replica, 0, 100))
        counters.add(Block(50, 500, 1, {"encode": 2.0}, packs=3, packed_tokens=400), Range(replica, 0, 100), replica)
        history.append(counter_values(counters.snapshot()))
    assert counters.join({}, "two", "another node") == 1  # it died and restarted on another node
    history.append(counter_values(counters.snapshot()))
    counters.begin("encode", Range(1, 0, 100))
    counters.add(Block(100, 1000, 2, {"encode": 4.0}), Range(1, 0, 100), 1)
    counters.end("encode", Range(1, 0, 100))
    history.append(counter_values(counters.snapshot()))
    for earlier, later in pairwise(history):
        assert all(later[name] >= value for name, value in earlier.items())
    last = counters.snapshot()
    assert (last.replicas, last.restarts, last.lost) == (2, 1, 1)
    assert [(count.node, count.tokens) for count in last.by_replica.values()] == [("node", 500), ("another node", 1500)]
    assert last.seconds == {"encode": 8.0}


def test_part_committed_by_two_workers_counts_once():
    counters = RunCounters(missing_rows=250)
    for retries in (2, 1):
        counters.commit(ROWS, file_bytes=1000, retries=retries)
    counters.commit(Range(1, 0, 100), file_bytes=500, retries=0)
    now = counters.snapshot()
    assert (now.parts, now.committed_rows, now.written_bytes, now.missing_rows) == (2, 200, 1500, 50)
    assert now.retries == 3


def test_missing_rows_are_none_if_the_rows_of_the_source_are_not_known():
    counters = RunCounters()
    counters.commit(ROWS, file_bytes=1000, retries=0)
    assert counters.snapshot().missing_rows is None


def test_age_of_the_oldest_part_starts_at_its_first_begin():
    counters = RunCounters()
    counters.begin("encode", ROWS)
    first = counters.snapshot().oldest_at
    assert first is not None
    counters.begin("encode", Range(1, 0, 100))
    counters.begin("encode", ROWS)
    assert counters.snapshot().oldest_at == first
    counters.end("encode", ROWS)
    assert counters.snapshot().oldest_at >= first


def test_snapshot_does_not_change_afterwards():
    counters = RunCounters()
    counters.join({}, "one", "node")
    earlier = counters.snapshot()
    counters.spend("read", 1.0)
    counters.add(Block(1, 10, 0), ROWS, 0)
    assert earlier.seconds == {}
    assert earlier.by_replica[0].tokens == 0
    assert counters.snapshot().seconds == {"read": pytest.approx(1.0)}
