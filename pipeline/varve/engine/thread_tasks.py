"""Work on many items in threads of this process: what `ray_tasks.spread` does on a cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_THREADS = 4

# Applies a function to many items in parallel and yields the results in any order.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Apply a function to items in a few threads of this process."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(work, items)
