"""Computes the next items of an iterator in another thread while the caller works on earlier ones.

Knows nothing of the items. Invariants: the order is kept; at most a given number of items is computed ahead; one item
is computed at a time.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def look_ahead(items: Iterator[T], pool: ThreadPoolExecutor, num_ahead: int) -> Generator[T, None, None]:
    """The same items; an exception of `items` is raised where its item would be.

    Args:
        items: used by the pool's thread only. If the caller stops early, items that are not begun are not computed.
        pool: of one thread.
        num_ahead: items, at least 1, that are computed before they are asked for.
    """
    pending = deque(pool.submit(next, items, _END) for _ in range(num_ahead))
    try:
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, items, _END))
            yield item
    finally:
        for each in pending:
            each.cancel()
