"""State of the whole process that Varve changes: library logs, progress bars and the garbage collector.

A program that calls Varve gets its state back: each change here returns how it is undone. Commands and Ray workers are
processes of Varve's own and never undo it. Knows nothing of what is imported or run. Each library is imported only by
the process that needs it, since importing transformers or datasets takes seconds.
"""

import gc
import logging
import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

Undo = Callable[[], None]


def silence_transformers() -> Undo:
    """Let transformers log errors only and show no progress bars; returns what restores its state."""
    return _silence("transformers.utils.logging", logging.ERROR)


def silence_datasets() -> Undo:
    """Let datasets log critical errors only and show no progress bars; returns what restores its state."""
    return _silence("datasets.utils.logging", logging.CRITICAL)


def _silence(name: str, level: int) -> Undo:
    log: Any = import_module(name)
    previous_level, showed_bars = log.get_verbosity(), log.is_progress_bar_enabled()

    def undo() -> None:
        log.set_verbosity(previous_level)
        if showed_bars:
            log.enable_progress_bar()

    log.set_verbosity(level)
    log.disable_progress_bar()
    return undo


def keep_log_levels(*names: str) -> Undo:
    """Returns what sets the levels of these loggers back to their present ones."""
    levels = {name: logging.getLogger(name).level for name in names}

    def undo() -> None:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    return undo


def keep_environment() -> Undo:
    """Returns what sets all environment variables back to their present values: Ray and torch set some of their own."""
    present = dict(os.environ)

    def undo() -> None:
        for name in os.environ.keys() - present.keys():
            del os.environ[name]
        os.environ.update(present)

    return undo


def import_without_gc(name: str) -> ModuleType:
    """Import a module with the garbage collector disabled.

    The modules of torch, transformers and datasets are a million objects that all stay. An enabled collector traverses
    them many times during the import (infra/decisions/0005).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if was_enabled:
            gc.enable()


def import_frozen(name: str) -> ModuleType:
    """`import_without_gc` in a process of Varve's own: later collections skip what exists by then."""
    module = import_without_gc(name)
    gc.freeze()
    return module
