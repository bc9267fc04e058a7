"""Verifies a finished output against its manifest, its source and its model; changes nothing.

Reads every part in full (checksums, rows, numbers), then checks coverage, what the manifest and job.json record, and
the canary with other rows than the run. Code runs only if the user permits it. Knows nothing of Ray. A forgery that
rewrites a part and its record in the manifest is found by the hash of the manifest alone, which holds the hash of every
part (`expect`).
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

import pyarrow as pa

from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError, one_line
from varve.output import manifest
from varve.output.manifest import MANIFEST_NAME, Manifest
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import CodePermission
from varve.source.dataset import Dataset
from varve.storage.object_store import Storage
from varve.verification import canary
from varve.verification.check import Check
from varve.verification.columns_check import PartColumns, check_columns
from varve.verification.coverage_check import check_coverage
from varve.verification.part_check import check_part
from varve.verification.record_check import check_job, check_totals
from varve.verification.reopened_run import ReopenedRun, reopen_run
from varve.verification.sampled_rows import choose_rows
from varve.verification.vocabulary_check import check_vocabulary

_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE)


def verify(
    path: str,
    *,
    deep: bool = False,
    expect: str | None = None,
    permission: CodePermission = CodePermission(),  # noqa: B008 (immutable)
    spread: Spread = in_threads,
    on_part: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Check]:
    """Check a finished output.

    Args:
        path: the job's output.path.
        deep: also read the whole source and count the rows of each shard.
        expect: SHA-256 that manifest.json must have, as its run printed it.
        permission: the code that may run; by default none.
        spread: runs the checks of parts and shards in parallel: in threads, or on a cluster.
        on_part: called with (number of parts checked, number of parts).

    Returns:
        One check for each property; all must pass.

    Raises:
        JobError: the path holds no output of Varve, or `expect` is not a SHA-256.
        RunError: the store failed, or the manifest cannot be read.
    """
    expected = None if expect is None else _parse_hash(expect)
    storage = Storage(path)
    stored = read_job(storage)
    if stored is None:
        msg = f"{storage.uri} holds no output of Varve"
        raise JobError(msg)
    finished = manifest.read_manifest(storage)
    if finished is None:
        return [Check("published", (f"{storage.uri} has no manifest: its run has not finished. See `varve status`",))]
    reopened = reopen_run(stored, storage.uri, permission)
    columns = PartColumns.read(storage, finished.parts)
    resolved, dataset = stored["resolved"], reopened.dataset
    vocabulary = columns and check_vocabulary(storage, columns.schema, columns.features)
    return [
        Check("published"),
        *([_check_manifest(finished, expected)] if expected else []),
        check_job(stored, finished),
        *_check_parts(storage, finished, columns, spread, on_part),
        check_columns(storage, finished, columns, stored),
        *([vocabulary] if vocabulary else []),
        check_coverage(
            storage, finished, resolved["num_shards"], resolved["rows_per_part"], dataset and dataset.shard_rows
        ),
        check_totals(finished, columns and columns.features),
        _check_canary(reopened, storage, finished, seed=int(stored["fingerprint"][8:16], 16)),
        *([_check_source(dataset, finished, spread)] if dataset and deep else []),
    ]


def _parse_hash(text: str) -> str:
    match = _HASH.fullmatch(text.strip())
    if match is None:
        msg = f"--expect: {text!r} is not a SHA-256: expected 64 hexadecimal digits, as `varve embed` prints them"
        raise JobError(msg)
    return match[1].lower()


def _check_manifest(finished: Manifest, expected: str) -> Check:
    if finished.sha256 == expected:
        return Check("manifest")
    return Check("manifest", (f"the SHA-256 of {MANIFEST_NAME} is {finished.sha256}, expected {expected}",))


def _check_parts(
    storage: Storage,
    finished: Manifest,
    columns: PartColumns | None,
    spread: Spread,
    on_part: Callable[[int, int], None],
) -> list[Check]:
    failures: dict[str, list[str]] = {"checksums": [], "rows": [], "numbers": []}
    check = partial(check_part, storage, expected=None if columns is None else columns.schema)
    for done, part_failures in enumerate(spread(check, finished.parts), 1):
        for name, descriptions in part_failures.items():
            failures[name] += descriptions
        on_part(done, len(finished.parts))
    return [Check(name, tuple(sorted(descriptions))) for name, descriptions in failures.items()]


def _check_source(dataset: Dataset, finished: Manifest, spread: Spread) -> Check:
    """Read the source and compare the row counts of its shards with those of the parts."""
    written: Counter[int] = Counter()
    for part in finished.parts:
        written[part.shard] += part.range.num_rows
    failures = []
    for shard, rows, error in spread(partial(_count_rows, dataset), range(dataset.num_shards)):
        if error or rows != written[shard]:
            where = f"shard {shard} ({dataset.file_of(shard)})"
            failures.append(error or f"{where} has {rows:,} rows, its parts have {written[shard]:,}")
    return Check("source", tuple(sorted(failures)))


def _count_rows(dataset: Dataset, shard: int) -> tuple[int, int, str]:
    """Return (shard, number of rows, error message if it cannot be read)."""
    try:
        return shard, sum(map(len, dataset.read(shard))), ""
    except RunError as e:
        return shard, 0, str(e)


def _check_canary(reopened: ReopenedRun, storage: Storage, finished: Manifest, *, seed: int) -> Check:
    """Run the canary with other rows than the run."""
    if reopened.dataset is None or reopened.source is None or reopened.failures:
        return Check("canary", reopened.failures, reopened.skipped)
    dataset, skipped = reopened.dataset, reopened.skipped
    chosen = [
        (shard, row) for shard, row in choose_rows(finished.parts, canary.ROWS, seed) if shard < dataset.num_shards
    ]
    try:
        result = canary.compare_rows(dataset, reopened.source, reopened.plan, storage, chosen, finished.parts)
    except RunError as e:
        return Check("canary", (str(e),), skipped)
    except (KeyError, TypeError, ValueError, IndexError, pa.ArrowException) as e:  # parts that no run of the job wrote
        failure = f"the parts do not hold the columns of the job: {type(e).__name__}: {one_line(e)}"
        return Check("canary", (failure,), skipped)
    if not result["rows"] and not result["failed"]:
        skipped = ("no row could be compared: no row of the output has features", *skipped)
    return Check("canary", tuple(result["failed"]), skipped)
