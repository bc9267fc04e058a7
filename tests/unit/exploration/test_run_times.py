"""The course of a job from the histories of the processes that ran it."""

import numpy as np
import pytest

from varve.exploration.run_times import measure_run
from varve.exploration.speed_change import find_slow_replicas, find_speed_change
from varve.monitoring.run_history import Event, History, PartSpan, ReplicaHistory

STAGES = {"encode": {"work_s": 1.0, "at_once": 2, "busy": 1.0}, "bottleneck": "encode"}


def part(number: int, begun_s: float, ended_s: float | None, *, replica=0, tokens=1000, errors=0) -> PartSpan:
    return PartSpan(
        shard=0, start=100 * number, stop=100 * number + 100, replica=replica, begun_s=begun_s, ended_s=ended_s,
        tokens=tokens, errors=errors,
    )  # fmt: skip


def history(tokens, *, started_at=1000.0, replicas=None, **changes) -> History:
    """Bins of one second; a row for each ten tokens."""
    tokens = tuple(tokens)
    values = {
        "started_at": started_at,
        "updated_s": float(len(tokens)),
        "outcome": "finished",
        "reason": "",
        "before_s": {"ray": 1.0, "plan": 0.5},
        "bin_s": 1.0,
        "rows": tuple(count // 10 for count in tokens),
        "tokens": tokens,
        "errors": tuple(0 for _ in tokens),
        "stages": {"encode": tuple(2.0 if count else 0.0 for count in tokens)},
        "replicas": replicas or (ReplicaHistory(number=0, node="10.0.0.1", ready_s=(2.0,), tokens=tokens),),
        "parts": (),
        "parts_left_out": 0,
        "events": (Event(at_s=1.0, kind="part_lost", text="shard 0"),),
    }
    return History(**{**values, **changes})


def kinds(run) -> list[str]:
    return [each.kind for each in run.lost]


def test_run_times_of_no_history_are_none():
    assert measure_run([], STAGES) is None


def test_run_times_put_attempts_one_after_the_other_without_pauses():
    first = history([0, 0, 100, 100], outcome="running", parts=(part(0, 2.0, None),))
    second = history([0, 100, 100], started_at=90_000.0, parts=(part(0, 1.0, 3.0),))
    run = measure_run([first, second], STAGES)
    assert [(each.begins_s, each.ends_s, each.outcome) for each in run.attempts] == [
        (0.0, 4.0, "killed"),
        (4.0, 7.0, "finished"),
    ]
    assert run.ends_s == 7.0
    assert [(each.begins_s, each.ends_s) for replica in run.replicas for each in replica.parts] == [(2, 4), (5, 7)]


def test_speed_counts_each_token_once_whatever_the_bins():
    run = measure_run([history([0, 500, 300, 700], bin_s=0.7, updated_s=2.6), history([20, 0, 80])], STAGES)
    assert run.tokens.sum() == pytest.approx(1600)
    assert np.all(np.diff(run.edges_s) > 0)
    assert run.edges_s[-1] == pytest.approx(run.ends_s)


def test_start_lasts_until_the_first_block():
    run = measure_run([history([0, 0, 0, 100, 100])], STAGES)
    start = run.lost[0]
    assert (start.kind, start.begins_s, start.ends_s) == ("start", 0.0, 3.0)
    assert run.encoding_s == pytest.approx(2.0)


def test_attempt_without_a_block_is_start_alone():
    run = measure_run([history([0, 0, 0], outcome="failed", reason="no node")], STAGES)
    assert kinds(run) == ["start"]
    assert run.encoding_s == 0


def test_restart_is_lost_from_the_last_sign_of_the_replica():
    one = ReplicaHistory(number=0, node="a", ready_s=(1.0,), tokens=(0, 50, 50, 50, 50, 50, 50, 50, 50, 50))
    other = ReplicaHistory(number=1, node="b", ready_s=(1.0, 8.0), tokens=(0, 50, 50, 0, 0, 0, 0, 0, 50, 50))
    tokens = [first + second for first, second in zip(one.tokens, other.tokens, strict=True)]
    run = measure_run([history(tokens, replicas=(one, other))], STAGES)
    (restart,) = (each for each in run.lost if each.kind == "restart")
    assert restart.replica == 1
    assert restart.begins_s == pytest.approx(2.5)
    assert restart.ends_s == 8.0


def test_stall_is_a_time_without_blocks_much_longer_than_usual():
    run = measure_run([history([0, *[100] * 10, *[0] * 30, *[100] * 10])], STAGES)
    (stall,) = (each for each in run.lost if each.kind == "stall")
    assert (stall.begins_s, stall.ends_s) == (11.0, 41.0)


def test_slow_blocks_are_no_stall():
    run = measure_run([history([0, *[100, 0, 0, 0, 0, 0, 0, 0] * 10, 100])], STAGES)
    assert "stall" not in kinds(run)


def test_stages_are_busy_by_their_seconds_after_the_first_replica():
    run = measure_run([history([0, 0, 100, 100, 100, 100], stages={"encode": (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)})], STAGES)
    assert run.stages["encode"].busy == pytest.approx(4.0 / (4 * 2))


def test_speed_change_is_found_where_the_speed_halves():
    change = find_speed_change(measure_run([history([0, *[1000] * 40, *[500] * 40])], STAGES))
    assert change.at_s == pytest.approx(41, abs=3)
    assert (change.before, change.after) == (pytest.approx(1000, rel=0.05), pytest.approx(500, rel=0.05))


def test_speed_change_of_a_steady_run_is_none():
    speeds = 1000 + 100 * np.random.default_rng(0).standard_normal(80)
    assert find_speed_change(measure_run([history([0, *speeds.astype(int).tolist()])], STAGES)) is None


def test_speed_change_ignores_starts_and_stalls():
    run = measure_run([history([*[0] * 30, *[1000] * 30, *[0] * 40, *[1000] * 30])], STAGES)
    assert find_speed_change(run) is None


def test_slow_replica_is_compared_with_the_others_of_its_attempt():
    tokens = (0, 10, 10, 10, 10)
    replicas = tuple(ReplicaHistory(number=n, node=f"n{n}", ready_s=(1.0,), tokens=tokens) for n in range(3))
    parts = (part(0, 0.0, 1.0, replica=0), part(1, 0.0, 1.1, replica=1), part(2, 0.0, 4.0, replica=2))
    (slow,) = find_slow_replicas(measure_run([history(tokens, replicas=replicas, parts=parts)], STAGES))
    assert slow.number == 2
    assert slow.tokens_per_s == pytest.approx(250)
    assert slow.others == pytest.approx((1000 + 1000 / 1.1) / 2)


def test_part_that_did_not_end_lasts_until_the_next_part_of_its_replica():
    parts = (part(0, 1.0, None), part(0, 3.0, 4.0))
    run = measure_run([history([0, 10, 0, 10], parts=parts)], STAGES)
    assert [(each.begins_s, each.ends_s) for each in run.replicas[0].parts] == [(1.0, 3.0), (3.0, 4.0)]
