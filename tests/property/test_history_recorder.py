"""Whatever workers report and however often bins double, the history adds up to the counters of the run."""

from collections import Counter
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varve.monitoring import run_counters
from varve.monitoring.block import Block
from varve.monitoring.history_recorder import HistoryRecorder
from varve.monitoring.run_counters import RunCounters
from varve.monitoring.run_history import MAX_BINS, MAX_BYTES, MAX_PARTS, History
from varve.monitoring.time_bins import TimeBins
from varve.ranges import Range

ROWS = 10  # of a block
PART = 30

step = st.tuples(
    st.floats(0, 2000),  # seconds since the previous report
    st.sampled_from(["begin", "add", "add", "add", "end", "join", "spend", "commit"]),
    st.integers(0, 3),  # part
    st.integers(0, 2),  # replica
    st.integers(0, 10**6),  # tokens
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(step, max_size=60))
def test_bins_add_up_to_the_counters_of_the_run(steps):
    clock_s = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_counters.time, "monotonic", lambda: clock_s)
        counters, spent, by_replica = RunCounters(), Counter(), Counter()
        for replica in range(3):
            counters.join({}, f"actor {replica}", "node")
        begun: set[int] = set()
        for passed_s, kind, number, replica, tokens in steps:
            clock_s += passed_s
            part = Range(0, PART * number, PART * (number + 1))
            if kind == "begin":
                counters.begin("encode", part, replica)
                begun.add(number)
            elif kind == "add":
                counters.add(Block(ROWS, tokens, tokens % ROWS, {"encode": passed_s}), part, replica)
                spent["encode"] += passed_s
                by_replica[replica] += tokens
            elif kind == "end" and number in begun:
                counters.end("encode", part)
                begun.remove(number)
            elif kind == "join":
                counters.join({}, f"actor {replica}", "node")
            elif kind == "spend":
                counters.spend("read", min(passed_s, 50.0))
                spent["read"] += min(passed_s, 50.0)
            elif kind == "commit":
                counters.commit(part, 1, 0)
        now, history = counters.snapshot(), counters.history()
    assert (sum(history.rows), sum(history.tokens), sum(history.errors)) == (now.rows, now.tokens, now.errors)
    assert {replica.number: sum(replica.tokens) for replica in history.replicas} == {n: by_replica[n] for n in range(3)}
    assert {name: round(fsum(values)) for name, values in history.stages.items()} == {
        name: pytest.approx(seconds, abs=1 + 0.001 * MAX_BINS) for name, seconds in spent.items() if seconds
    }
    assert len(history.rows) <= MAX_BINS
    assert min((*history.rows, *history.tokens, *history.errors), default=0) >= 0
    assert len([event for event in history.events if event.kind == "part_lost"]) == now.lost
    assert History.decode(history.encode()) == history


@given(
    values=st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 10**9), st.floats(0, 100), st.floats(0, 3000)), max_size=30
    )
)
def test_number_of_series_changes_no_sum(values):
    bins, expected, clock_s = TimeBins(1, "int64"), Counter(), 0.0
    for series, value, passed_s, lasted_s in values:
        clock_s += passed_s
        bins.add(series, value, max(0.0, clock_s - lasted_s), clock_s)
        expected[series] += value
    sums = bins.sums(clock_s).sum(1)
    assert {series: sums[series] for series in expected} == expected
    assert bins.sums(clock_s).shape[1] * bins.width_s > clock_s


def test_block_is_spread_over_the_time_since_the_last_report():
    recorder = HistoryRecorder()
    recorder.join(0, "node", 1.0)
    recorder.begin(Range(0, 0, 100), 0, 2.0)
    recorder.add(Block(50, 400), run_counters.Added(50, 400, 0, 0), Range(0, 0, 100), 0, 6.0)
    recorder.add(Block(50, 100), run_counters.Added(50, 100, 0, 0), Range(0, 0, 100), 0, 6.5)
    assert recorder.history(0.0, 7.0).tokens == (0, 0, 100, 100, 100, 100, 100, 0)


def test_part_of_a_dead_worker_has_two_spans_and_its_rows_count_once():
    counters, part = RunCounters(), Range(2, 0, 20)
    for actor in ("a", "b"):
        counters.join({}, actor, "node")
    counters.begin("encode", part, 0)
    counters.add(Block(10, 100, 1), part, 0)
    counters.begin("encode", part, 1)
    for _ in range(2):
        counters.add(Block(10, 100, 1), part, 1)
    counters.end("encode", part)
    history = counters.history()
    assert [(span.replica, span.tokens, span.errors, span.ended_s is None) for span in history.parts] == [
        (0, 100, 1, True),
        (1, 200, 2, False),
    ]
    assert (sum(history.rows), sum(history.tokens), sum(history.errors)) == (20, 200, 2)
    assert [event.text for event in history.events] == ["rows [0, 20) of shard 2 were started again: replica 0 died"]


def test_history_of_a_large_run_is_bounded():
    recorder, replicas = HistoryRecorder(), 1024
    for number in range(replicas):
        recorder.join(number, "10.0.0.1", 20.0)
    for number in range(20_000):
        part, at_s = Range(0, number, number + 1), 20.0 + number
        recorder.begin(part, number % replicas, at_s)
        recorder.add(
            Block(512, 10**9, 0, {"encode": 9.0}),
            run_counters.Added(512, 10**9, 0, 0),
            part,
            number % replicas,
            at_s + 0.5,
        )
        recorder.end(part, at_s + 0.5)
    history = recorder.history(1.7e9, 21_000.0)
    assert sum(history.tokens) == 20_000 * 10**9
    assert (len(history.parts), history.parts_left_out) == (MAX_PARTS, 20_000 - MAX_PARTS)
    assert len(history.encode()) < MAX_BYTES // 2
