"""How what takes seconds to import is imported: out of the garbage collector's sight.

The modules of torch, transformers and datasets are a million objects that all stay. The collector walks through them
while they are imported, and once more in every full collection after that: of ten seconds in which a small job starts,
one (infra/decisions/0005). Knows nothing of what is imported.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without the collector, in all of this process; what is there by the end, it never looks at again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def collected_afterwards() -> Iterator[None]:
    """Give back to the collector, in the end, what was kept from it inside: the process may be somebody's program.

    It collects at once, for among that may be what holds a cluster's CPUs: Ray Data's handles of a run's replicas are
    freed with what refers to itself, and what was given back waits for a full collection, which may never come.
    """
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()
