"""Verifies a finished output against its manifest, its source and its model; changes nothing.

Reads every part in full (checksums, rows, numbers), then checks coverage, the totals of the manifest, and the canary
with other rows than the run. Knows nothing of Ray.
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
from varve.planning.saved_plan import load_plan, read_job
from varve.source.dataset import Dataset
from varve.storage.object_store import Storage
from varve.verification import canary
from varve.verification.part_check import check_part

_THREADS = 4

# Applies a function to many items in parallel and yields the results in any order.
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def in_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Apply a function to items in a few threads of this process."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(work, items)


@dataclass(frozen=True, slots=True)
class Check:
    """One property of an output, and the failures that were found."""

    name: str
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no failure was found."""
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
        deep: also read the whole source and count the rows of each shard.
        spread: runs the checks of parts and shards in parallel: in threads, or on a cluster.
        on_part: called with (number of parts checked, number of parts).

    Returns:
        One check for each property; all must pass.

    Raises:
        JobError: the path holds no output of Varve.
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
        return load_plan(Job.parse(stored["job"]).in_folder(folder), stored, storage.uri), Check("canary", ())
    except VarveError as e:
        return None, Check("canary", (f"the source, the model or the code of the run cannot be opened: {e}",))


def _check_parts(
    storage: Storage, finished: Manifest, spread: Spread, on_part: Callable[[int, int], None]
) -> list[Check]:
    failures: dict[str, list[str]] = {"checksums": [], "rows": [], "numbers": []}
    for done, part_failures in enumerate(spread(partial(check_part, storage), finished.parts), 1):
        for name, descriptions in part_failures.items():
            failures[name] += descriptions
        on_part(done, len(finished.parts))
    return [Check(name, tuple(sorted(descriptions))) for name, descriptions in failures.items()]


def _check_source(plan: Plan, finished: Manifest, spread: Spread) -> Check:
    """Read the source and compare the row counts of its shards with those of the parts."""
    written: Counter[int] = Counter()
    for part in finished.parts:
        written[part.shard] += part.range.num_rows
    failures = []
    for shard, rows, error in spread(partial(_count_rows, plan.dataset), range(plan.dataset.num_shards)):
        if error or rows != written[shard]:
            where = f"shard {shard} ({plan.dataset.file_of(shard)})"
            failures.append(error or f"{where} has {rows:,} rows, its parts have {written[shard]:,}")
    return Check("source", tuple(sorted(failures)))


def _count_rows(dataset: Dataset, shard: int) -> tuple[int, int, str]:
    """Return (shard, number of rows, error message if it cannot be read)."""
    try:
        return shard, sum(map(len, dataset.read(shard))), ""
    except RunError as e:
        return shard, 0, str(e)


def _check_coverage(storage: Storage, finished: Manifest, plan: Plan | None) -> Check:
    committed = manifest.committed(storage)
    resolved = finished.resolved
    rows = None if plan is None else plan.dataset.shard_rows
    failures = manifest.coverage_gaps(committed, resolved["num_shards"], resolved["rows_per_part"], rows)
    listed = {part for parts in committed.values() for part in parts}
    unknown = listed.difference(part.range for part in finished.parts)
    gone = (part.range for part in finished.parts if part.range not in listed)
    failures += [f"shard {r.shard}, rows [{r.start}, {r.stop}): the part is not in the manifest" for r in unknown]
    failures += [f"shard {r.shard}, rows [{r.start}, {r.stop}): the part is gone" for r in gone]
    return Check("coverage", tuple(failures))


def _check_totals(finished: Manifest) -> Check:
    failures = [
        f"{name} is {getattr(finished, name)}, the sum over its parts is {getattr(finished.parts, name)}"
        for name in ("num_rows", "num_tokens", "num_errors")
        if getattr(finished, name) != getattr(finished.parts, name)
    ]
    return Check("totals", tuple(failures))


def _check_canary(plan: Plan, storage: Storage, finished: Manifest) -> Check:
    """Run the canary with other rows than the run."""
    try:
        seed = int(finished.fingerprint[8:16], 16)
        return Check("canary", tuple(canary.compare(plan, storage, finished.parts, seed=seed)["failed"]))
    except RunError as e:
        return Check("canary", (str(e),))
