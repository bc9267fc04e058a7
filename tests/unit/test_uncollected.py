"""Imports out of the garbage collector's sight."""

import gc
import weakref

import pytest

from varve.import_gc import collected_afterwards, uncollected


class Ring:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def collector():
    yield
    gc.enable()
    gc.unfreeze()


def is_freed(ring: weakref.ref[Ring]) -> bool:
    gc.collect()
    return ring() is None


def test_what_is_imported_is_never_looked_at_again():
    with uncollected():
        ring = weakref.ref(Ring())
    later = weakref.ref(Ring())
    assert not is_freed(ring)
    assert is_freed(later)


def test_program_of_somebody_gets_its_collector_back():
    with collected_afterwards():
        with uncollected():
            ring = weakref.ref(Ring())
        assert not is_freed(ring)
    assert is_freed(ring)


def test_what_a_run_has_left_is_freed_when_it_ends_not_some_time_later():
    with collected_afterwards(), uncollected():
        ring = weakref.ref(Ring())
    assert ring() is None


def test_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), uncollected():
        import a_module_that_is_not_there  # noqa: F401 # pyright: ignore[reportMissingImports]
    assert gc.isenabled()


@pytest.mark.parametrize("before", [True, False])
def test_import_leaves_the_collector_as_it_was(before: bool):
    gc.enable() if before else gc.disable()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled() is before


def test_two_imports_at_once_leave_the_collector_on():
    first, second = uncollected(), uncollected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()
