"""Ray Data's loop looks less often while nothing happens, and never much later than it should."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext

from varve.engine import loop_throttle

STEP_S = 0.1  # what Ray's loop itself waits


class Clock:
    """The time of a loop that does nothing but wait."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def looks(events: list[float], end: float) -> list[float]:
    """When the loop looks, if something happens at these times."""
    clock, context = Clock(), DataContext()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_throttle, "time", clock)
        loop_throttle.pace(context)
        callback, metrics = context.custom_execution_callback_classes[-1](), SimpleNamespace()
        executor = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)])
        times = []
        while clock.now < end:
            clock.now += STEP_S
            times.append(clock.now)
            metrics.num_task_outputs_generated = sum(event <= clock.now for event in events)
            callback.on_execution_step(executor)
    return times


def test_long_quiet_run_is_looked_at_twice_a_second():
    times = looks([], 300)
    assert sum(time > 200 for time in times) <= 2.1 * 100


def test_run_in_which_much_happens_is_looked_at_as_often_as_ray_does():
    often = [0.1 * at for at in range(3000)]
    assert len(looks(often, 300)) > 0.9 * 300 / (1.1 * STEP_S)


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=40))
def test_what_happens_is_seen_within_a_tenth_of_the_time_since_the_last(gaps):
    events = [sum(gaps[: at + 1]) for at in range(len(gaps))]
    times = looks(events, events[-1] + 1)
    last_seen = 0.0
    for event in events:
        if event > last_seen:  # else it was seen together with the one before
            seen = next(time for time in times if time >= event)
            assert seen - event <= STEP_S + min(0.4, (event - last_seen) / 10, event / 200) + 1e-6
            last_seen = seen
