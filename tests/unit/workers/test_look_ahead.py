"""Items that are computed in a thread before they are asked for."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event, get_ident

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varve.workers.look_ahead import look_ahead


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(1) as threads:
        yield threads


@given(st.lists(st.integers()), st.integers(1, 5))
def test_items_keep_their_order(pool, items, num_ahead):
    assert list(look_ahead(iter(items), pool, num_ahead)) == items


def test_items_are_computed_in_the_other_thread_but_no_more_than_are_allowed(pool):
    threads, three = [], Event()

    def items():
        for number in range(10):
            threads.append(get_ident())
            if number == 2:
                three.set()
            yield number

    with closing(look_ahead(items(), pool, 2)) as ahead:
        assert next(ahead) == 0
        assert three.wait(10)  # two ahead of the one that was taken
        pool.submit(lambda: None).result()
        assert len(threads) == 3
    assert set(threads) == {pool.submit(get_ident).result()}


def test_an_exception_is_raised_in_the_place_of_its_item(pool):
    def items():
        yield 1
        msg = "broken"
        raise ValueError(msg)

    ahead = look_ahead(items(), pool, 3)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_a_caller_that_stops_early_computes_no_more(pool):
    computed, proceed = [], Event()

    def items():
        for number in range(100):
            computed.append(number)
            if number == 1:
                proceed.wait(10)
            yield number

    with closing(look_ahead(items(), pool, 3)) as ahead:
        next(ahead)
    proceed.set()
    pool.submit(lambda: None).result()
    assert computed == [0, 1]
