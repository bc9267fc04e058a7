"""What every format does when drivers and readers work at once: one commit; before or after, nothing between."""

import threading

from tests.lake.features import definition
from varve.lake.table import HeadMovedError

RACES = 20


def in_threads(*calls) -> list:
    """Call functions in threads that start together; returns their results or errors."""
    gate = threading.Barrier(len(calls))
    results: list = [None] * len(calls)

    def wait_and_call(index: int) -> None:
        gate.wait(30)
        try:
            results[index] = calls[index]()
        except Exception as e:  # noqa: BLE001 (the test asserts which)
            results[index] = e

    threads = [threading.Thread(target=wait_and_call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_prepare_of_two_drivers_at_once_makes_one_table(features):
    assert in_threads(*[lambda: features.table.prepare(definition())] * 2) == [None, None]
    assert features.keys() == []


def test_two_drivers_of_one_job_at_once_make_one_commit(prepared):
    """Both stage and commit the same files on the same head, again and again."""
    for race in range(RACES):
        change = prepared.change(race + 1, [prepared.write([2 * race]), prepared.write([2 * race + 1])])
        versions = len({file.path for file in prepared.table.files(prepared.head())})

        def drive(change=change):
            prepared.table.stage(change)
            return prepared.table.commit(change)

        first, second = in_threads(drive, drive)
        committed = [each for each in (first, second) if not isinstance(each, Exception)]
        assert committed, (first, second)
        assert set(committed) == {prepared.head()}
        assert all(isinstance(each, (int, HeadMovedError)) for each in (first, second)), (first, second)
        assert len(prepared.table.files(prepared.head())) == versions + 2
    assert prepared.keys() == list(range(2 * RACES))


def test_two_drivers_of_different_runs_at_once_both_land_or_one_sees_a_moved_head(prepared):
    for race in range(5):
        changes = [prepared.change(10 * race + index, [prepared.write([2 * race + index])]) for index in (1, 2)]
        results = in_threads(*[lambda change=change: prepared.table.commit(change) for change in changes])
        moved = [each for each in results if isinstance(each, HeadMovedError)]
        assert len(moved) == 1, results
    assert len(prepared.keys()) == 5


def test_poller_sees_the_rows_before_or_after_a_commit_and_nothing_else(prepared):
    prepared.add(1, range(10))
    done, seen = threading.Event(), []

    def poll():
        while not done.is_set():
            seen.append(tuple(prepared.keys()))

    poller = threading.Thread(target=poll)
    poller.start()
    old = prepared.table.files(prepared.head())
    change = prepared.change(2, [prepared.write(range(5, 12)), prepared.write(range(12, 20))], old)
    prepared.table.stage(change)
    prepared.table.commit(change)
    seen.append(tuple(prepared.keys()))
    done.set()
    poller.join()
    assert set(seen) == {tuple(range(10)), tuple(range(5, 20))}
    assert seen == sorted(seen)
