"""The pass over all parts of the source: adds the missing ones to an index, and finds exact neighbours of queries.

Both need the vectors of every part, so they are read once. Knows nothing of recall.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from varve.engine.parallel import Spread
from varve.indexing.neighbours import Neighbours, nearest
from varve.indexing.recall import DEPTH, Proof, ProofQueries
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind, Target

_PARTS_PER_TASK = 16  # fewer results to merge

# Called with (step, items that are done, number of items).
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Tasks:
    """Runs work on items in parallel, and reports its progress."""

    spread: Spread
    on_step: OnStep

    def run(self, step: str, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Apply a function to each item; yields the results in any order."""
        self.on_step(step, 0, len(items))
        for done, result in enumerate(self.spread(work, items), 1):
            self.on_step(step, done, len(items))
            yield result


def add_parts(
    target: Target, kind: Kind, source: IndexSource, queries: Sequence[ProofQueries], tasks: Tasks
) -> list[Proof]:
    """Add the missing parts and finish the index; the same pass finds the exact neighbours of the queries."""
    for _ in tasks.run(f"{kind.name}: train", partial(_train, target, source), [kind]):
        pass
    missing = {*range(source.num_parts)} - target.added(kind, source)
    # All parts are read if exact neighbours are needed, also the ones of an interrupted build.
    parts = [*range(source.num_parts)] if queries else sorted(missing)
    per_task = min(_PARTS_PER_TASK, max(1, len(parts) // 64))
    groups = [parts[start : start + per_task] for start in range(0, len(parts), per_task)]
    work = partial(_add_group, target, kind, source, frozenset(missing), tuple(queries))
    exact: list[Neighbours] | None = None
    for found in tasks.run(f"{kind.name}: add", work, groups):
        exact = found if exact is None else [Neighbours.merge(pair) for pair in zip(exact, found, strict=True)]
    pieces = range(target.pieces(kind, source))
    for _ in tasks.run(f"{kind.name}: finish", partial(target.finish, kind, source), pieces):
        pass
    return [Proof(asked, answer) for asked, answer in zip(queries, exact or [], strict=False)]


def _train(target: Target, source: IndexSource, kind: Kind) -> None:
    target.train(kind, source)


def _add_group(
    target: Target,
    kind: Kind,
    source: IndexSource,
    missing: frozenset[int],
    queries: Sequence[ProofQueries],
    parts: Sequence[int],
) -> list[Neighbours]:
    """Add some parts; returns the nearest of their vectors to each query."""
    exact = [Neighbours.none(len(asked.vectors), DEPTH) for asked in queries]
    for part in parts:
        rows = source.read(part)
        if part in missing:
            target.add(kind, source, rows)
        for at, asked in enumerate(queries):
            found = nearest(
                asked.vectors,
                rows.vectors,
                rows.first,
                DEPTH,
                source.metric,
                leave_out=asked.positions,
                floor=exact[at].scores[:, -1],
            )
            exact[at] = Neighbours.merge([exact[at], found])
    return exact
