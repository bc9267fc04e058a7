"""What Varve changes in a process, and how that is undone."""

import gc
import logging
import weakref

import datasets
import pytest
import transformers

from varve.process_state import (
    import_frozen,
    import_without_gc,
    keep_log_levels,
    silence_datasets,
    silence_transformers,
)


class Cycle:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector():
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that says whether the collector ran during its import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"module_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("import gc\nENABLED = gc.isenabled()\n")
    return name


def test_objects_of_a_frozen_import_are_not_collected_and_later_ones_are(module):
    before = weakref.ref(Cycle())
    import_frozen(module)
    after = weakref.ref(Cycle())
    gc.collect()
    assert before() is not None
    assert after() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_import_leaves_the_collector_as_it_was(enabled, module):
    gc.enable() if enabled else gc.disable()
    assert not import_without_gc(module).ENABLED
    assert gc.isenabled() is enabled
    assert gc.get_freeze_count() == 0


def test_import_that_fails_leaves_the_collector_enabled():
    with pytest.raises(ModuleNotFoundError):
        import_without_gc("a_module_that_does_not_exist")
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("silence", "log"), [(silence_transformers, transformers.logging), (silence_datasets, datasets.utils.logging)]
)
@pytest.mark.parametrize("shows_bars", [True, False])
def test_silenced_library_gets_its_level_and_its_bars_back(silence, log, shows_bars):
    level, showed_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.INFO)
    (log.enable_progress_bar if shows_bars else log.disable_progress_bar)()
    undo = silence()
    assert log.get_verbosity() >= logging.ERROR
    assert not log.is_progress_bar_enabled()
    undo()
    assert log.get_verbosity() == logging.INFO
    assert log.is_progress_bar_enabled() is shows_bars
    log.set_verbosity(level)
    (log.enable_progress_bar if showed_bars else log.disable_progress_bar)()


def test_kept_log_levels_are_restored():
    logger = logging.getLogger("varve.tests.kept")
    undo = keep_log_levels(logger.name)
    logger.setLevel(logging.CRITICAL)
    undo()
    assert logger.level == logging.NOTSET
