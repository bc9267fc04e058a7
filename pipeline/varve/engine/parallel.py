"""Work on many items in parallel: in threads of this process, or in tasks of Ray.

Invariant: importing this file does not import Ray.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from varve.output.manifest import Manifest

_THREADS = 4
# More is read in tasks of Ray; for less its start takes longer than the work.
LARGE_BYTES = 2_000_000_000
_MANY_PARTS = 500

# Applies a function to many items in parallel and yields the results in any order.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Apply a function to items in a few threads of this process."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(work, items)


def is_large(file_bytes: int, num_parts: int) -> bool:
    """Whether tasks of Ray read so many bytes or parts faster than threads, their start included."""
    return file_bytes > LARGE_BYTES or num_parts > _MANY_PARTS


def choose_spread(manifest: Manifest | None) -> Spread:
    """What reads the parts of an output: the Ray at RAY_ADDRESS, for a large output any Ray, else threads.

    Args:
        manifest: of the output; a local Ray is started if it is large and none is connected.
    """
    if (manifest is not None and is_large(manifest.file_bytes, len(manifest.parts))) or os.environ.get("RAY_ADDRESS"):
        from varve.cluster.connection import start_ray  # noqa: PLC0415 (imports Ray)
        from varve.config.compute import Compute  # noqa: PLC0415
        from varve.engine.ray_tasks import spread  # noqa: PLC0415

        start_ray(Compute())
        return spread
    return in_threads
