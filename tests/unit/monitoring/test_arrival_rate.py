"""The time left counts down evenly although rows arrive in blocks."""

import random
from itertools import pairwise

import pytest

from varve.monitoring.arrival_rate import ArrivalRate

TOKENS = 640  # of a block
REDRAW_S = 0.5


def arrivals(replicas: int, block_s: float, num_blocks: int, jitter: float) -> list[tuple[float, int]]:
    """(second, replica) of each block; all replicas begin at once."""
    rng = random.Random(0)
    times = []
    for replica in range(replicas):
        clock_s = 0.0
        for _ in range(num_blocks):
            clock_s += block_s * rng.uniform(1 - jitter, 1 + jitter)
            times.append((clock_s, replica))
    return sorted(times)[:num_blocks]


def replay(blocks: list[tuple[float, int]], redraw_s: float = REDRAW_S) -> list[tuple[float, float]]:
    """(clock, seconds left) at each redraw until the last block."""
    rate, shown = ArrivalRate(), []
    for step in range(int(blocks[-1][0] / redraw_s)):
        clock_s = step * redraw_s
        delivered: dict[int, int] = {}
        for at_s, replica in blocks:
            if at_s <= clock_s:
                delivered[replica] = delivered.get(replica, 0) + TOKENS
        rate.observe(clock_s, delivered)
        left_s = rate.seconds_left(clock_s, TOKENS * len(blocks) - sum(delivered.values()))
        if left_s is not None:
            shown.append((clock_s, left_s))
    return shown


@pytest.mark.parametrize(
    ("replicas", "block_s", "num_blocks"), [(1, 3.0, 20), (1, 10.0, 60), (2, 10.0, 60), (4, 10.0, 60), (8, 10.0, 200)]
)
@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_time_left_of_a_run_in_blocks_counts_down_with_the_clock(replicas, block_s, num_blocks, jitter):
    blocks = arrivals(replicas, block_s, num_blocks, jitter)
    end_s, shown = blocks[-1][0], replay(blocks)
    jumps = [abs(after - max(0.0, before - REDRAW_S)) for (_, before), (_, after) in pairwise(shown)]
    assert max(jumps) < (0.025 * end_s if jitter else 0.01)
    assert all(abs(left_s - (end_s - clock_s)) < 0.1 * end_s for clock_s, left_s in shown if clock_s > end_s / 4)


def test_time_left_is_known_from_the_second_block_of_a_replica_on():
    shown = replay(arrivals(2, 10.0, 20, 0.0))
    assert shown[0] == (20.0, pytest.approx(80.0))


def test_time_left_of_a_run_that_stalls_grows():
    blocks = arrivals(1, 10.0, 10, 0.0)
    late = [*blocks[:5], *((at_s + 600, replica) for at_s, replica in blocks[5:])]
    left = dict(replay(late))
    assert left[600.0] > left[300.0] > left[60.0]


def test_time_left_in_rare_redraws_is_that_of_the_rate():
    shown = replay(arrivals(2, 0.4, 1000, 0.2), redraw_s=15.0)
    assert shown[-1][1] == pytest.approx(200 - shown[-1][0], abs=10)


def test_speed_between_blocks_is_that_of_whole_blocks():
    rate = ArrivalRate()
    for second in range(0, 40, 10):
        rate.observe(second, {0: TOKENS * second, 1: TOKENS * second})
    assert {rate.tokens_per_s(30 + wait) for wait in range(10)} == {2 * TOKENS}
