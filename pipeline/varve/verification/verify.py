"""The proof of a finished output, made again from what is stored.

Knows nothing of Ray. Every part is read whole: its checksum, its rows, its numbers; then the coverage, the totals of
the manifest, and the canary with other rows. Nothing is changed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from varve.config.job import Job
from varve.errors import JobError, RunError, VarveError
from varve.output import manifest
from varve.output.manifest import Manifest
from varve.planning.plan import Plan
from varve.planning.saved_plan import read_job, recall_plan
from varve.source.dataset import Dataset
from varve.storage.object_store import Storage
from varve.verification import canary
from varve.verification.part_check import check_part

_THREADS = 4

# Does one thing for each of many, and gives the results in any order.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Here, a few at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(work, items)


@dataclass(frozen=True, slots=True)
class Check:
    """One property of an output, and everything that contradicts it."""

    name: str
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.failures


def verify(
    path: str,
    *,
    deep: bool = False,
    spread: Spread = in_threads,
    on_part: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Check]:
    """Check a finished output.

    Args:
        path: the job's output.path.
        deep: read the whole source again too, and count the rows of each shard.
        spread: how the same work is done on many things: in threads, or on a cluster.
        on_part: called with (parts checked, parts in all).

    Returns:
        One check for each property; all must pass.

    Raises:
        JobError: there is no output of Varve.
    """
    storage = Storage(path)
    stored = read_job(storage)
    if stored is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    finished = manifest.read_manifest(storage)
    if finished is None:
        return [Check("published", (f"{storage.uri} has no manifest: its run has not finished. See `varve status`",))]
    plan, opened = _open_plan(stored, storage)
    return [
        Check("published", ()),
        *_check_parts(storage, finished, spread, on_part),
        _check_coverage(storage, finished, plan),
        _check_totals(finished),
        opened if plan is None else _check_canary(plan, storage, finished),
        *([] if plan is None or not deep else [_check_source(plan, finished, spread)]),
    ]


def _open_plan(stored: Mapping[str, Any], storage: Storage) -> tuple[Plan | None, Check]:
    try:
        folder = stored.get("code", {}).get("folder", ".")
        return recall_plan(Job.parse(stored["job"]).in_folder(folder), stored, storage.uri), Check("canary", ())
    except VarveError as e:
        return None, Check("canary", (f"the source, the model or the code can't be opened as they were: {e}",))


def _check_parts(
    storage: Storage, finished: Manifest, spread: Spread, on_part: Callable[[int, int], None]
) -> list[Check]:
    found: dict[str, list[str]] = {"checksums": [], "rows": [], "numbers": []}
    for done, failures in enumerate(spread(partial(check_part, storage), finished.parts), 1):
        for name, told in failures.items():
            found[name] += told
        on_part(done, len(finished.parts))
    return [Check(name, tuple(sorted(told))) for name, told in found.items()]


def _check_source(plan: Plan, finished: Manifest, spread: Spread) -> Check:
    """Count the rows of the source by reading it."""
    written: Counter[int] = Counter()
    for part in finished.parts:
        written[part.shard] += part.range.num_rows
    told = []
    for shard, rows, error in spread(partial(_count_rows, plan.dataset), range(plan.dataset.num_shards)):
        if error or rows != written[shard]:
            where = f"shard {shard} ({plan.dataset.name(shard)})"
            told.append(error or f"{where} has {rows:,} rows, its parts have {written[shard]:,}")
    return Check("source", tuple(sorted(told)))


def _count_rows(dataset: Dataset, shard: int) -> tuple[int, int, str]:
    """(shard, its rows, what kept it from being read)."""
    try:
        return shard, sum(map(len, dataset.read(shard))), ""
    except RunError as e:
        return shard, 0, str(e)


def _check_coverage(storage: Storage, finished: Manifest, plan: Plan | None) -> Check:
    found = manifest.committed(storage)
    resolved = finished.resolved
    rows = None if plan is None else plan.dataset.shard_rows
    told = manifest.coverage_gaps(found, resolved["num_shards"], resolved["rows_per_part"], rows)
    listed = {part for parts in found.values() for part in parts}
    unknown = listed.difference(part.range for part in finished.parts)
    gone = (part.range for part in finished.parts if part.range not in listed)
    told += [f"shard {r.shard}, rows [{r.start}, {r.stop}): a part that the manifest does not know" for r in unknown]
    told += [f"shard {r.shard}, rows [{r.start}, {r.stop}): its part is gone" for r in gone]
    return Check("coverage", tuple(told))


def _check_totals(finished: Manifest) -> Check:
    wrong = [
        f"{name} is {getattr(finished, name)}, its parts have {getattr(finished.parts, name)}"
        for name in ("num_rows", "num_tokens", "num_errors")
        if getattr(finished, name) != getattr(finished.parts, name)
    ]
    return Check("totals", tuple(wrong))


def _check_canary(plan: Plan, storage: Storage, finished: Manifest) -> Check:
    """Compare other rows than the run did."""
    try:
        seed = int(finished.fingerprint[8:16], 16)
        return Check("canary", tuple(canary.compare(plan, storage, finished.parts, seed=seed)["failed"]))
    except RunError as e:
        return Check("canary", (str(e),))
