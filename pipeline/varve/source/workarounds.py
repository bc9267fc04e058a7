"""Workarounds for defects of datasets and Arrow; each names the condition for its removal."""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import config, data_files

from varve.storage.fsspec_files import escape

# How long Arrow's threads may still read after their result is no longer needed.
_LAST_READS_S = 0.5


@contextmanager
def streams_without_torch() -> Iterator[None]:
    """Make `datasets` create streams that do not derive from torch's IterableDataset.

    Such a stream imports torch in every reading process, which takes a second and 200 MB, and keeps a number in torch's
    shared memory, which fails without a writable /dev/shm. The setting of `datasets` is restored at the end. Remove
    when `datasets` no longer imports torch for a stream.
    """
    previous = config.TORCH_AVAILABLE
    config.TORCH_AVAILABLE = False
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = previous


@contextmanager
def by_their_names(folder: str) -> Iterator[None]:
    """Make `datasets` find the files of a local folder whose path has the special characters of globs.

    It joins the path and its patterns to one pattern. Remove when it escapes the path.
    """
    resolve = data_files.resolve_pattern

    def resolve_escaped(pattern: str, base_path: str, **arguments: Any) -> list[str]:
        is_below = "://" not in base_path and data_files.is_relative_path(pattern)
        return resolve(f"{escape(base_path)}/{pattern}" if is_below else pattern, base_path=base_path, **arguments)

    if escape(folder) != folder:
        data_files.resolve_pattern = resolve_escaped
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


@contextmanager
def ending_calmly() -> Iterator[None]:
    """Delay the interpreter's exit if it follows a read so closely that Arrow's threads may still be reading.

    These threads hold Python files; one that outlives the interpreter aborts the process and hides its exit code.
    Remove when apache/arrow#45214 is closed.
    """
    _postpone_exit()
    try:
        yield
    finally:
        _postpone_exit()


def _postpone_exit() -> None:
    atexit.unregister(_wait_until)
    atexit.register(_wait_until, time.monotonic() + _LAST_READS_S)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
