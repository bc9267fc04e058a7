"""The proof of a finished output, made again from what is stored.

Knows nothing of Ray. Every part is read whole: its checksum, its rows, its numbers; then the coverage, the totals of
the manifest, and the canary with other rows. Nothing is changed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import canary, manifest
from pipeline.errors import JobError, RunError, VarveError
from pipeline.manifest import Manifest
from pipeline.plan import Plan, read_job, recall_plan
from pipeline.schema import METADATA_KEY
from pipeline.sink import Part
from pipeline.spec import Job
from pipeline.storage.objects import Storage

# Rounding of a unit vector's length in each stored dtype; binary has no length.
_NORM_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}


@dataclass(frozen=True, slots=True)
class Check:
    """One property of an output, and everything that contradicts it."""

    name: str
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.failures


def verify(path: str, *, on_part: Callable[[int, int], None] = lambda _done, _of: None) -> list[Check]:
    """Check a finished output.

    Args:
        path: the job's output.path.
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
        *_check_parts(storage, finished, on_part),
        _check_coverage(storage, finished, plan),
        _check_totals(finished),
        opened if plan is None else _check_canary(plan, storage, finished),
    ]


def _open_plan(stored: Mapping[str, Any], storage: Storage) -> tuple[Plan | None, Check]:
    try:
        return recall_plan(Job.parse(stored["job"]), stored, storage.uri), Check("canary", ())
    except VarveError as e:
        return None, Check("canary", (f"the source or the model can't be opened as they were: {e}",))


def _check_parts(storage: Storage, finished: Manifest, on_part: Callable[[int, int], None]) -> list[Check]:
    found: dict[str, list[str]] = {"checksums": [], "rows": [], "numbers": []}
    with ThreadPoolExecutor(max_workers=4) as threads:
        checked = threads.map(lambda part: _check_part(storage, part, finished.fingerprint), finished.parts)
        for done, failures in enumerate(checked, 1):
            for name, told in failures.items():
                found[name] += told
            on_part(done, len(finished.parts))
    return [Check(name, tuple(told)) for name, told in found.items()]


def _check_part(storage: Storage, part: Part, fingerprint: str) -> dict[str, list[str]]:
    content = storage.read(part.name)
    if content is None:
        return {"checksums": [f"{part.name} is gone"]}
    if hashlib.sha256(content[: part.data_bytes]).hexdigest() != part.data_sha256 or len(content) != part.file_bytes:
        return {"checksums": [f"{part.name}: its bytes are not those that were committed"]}
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as e:
        return {"checksums": [f"{part.name}: {' '.join(str(e).split())[:200]}"]}
    described = json.loads((table.schema.metadata or {})[METADATA_KEY])
    rows = _row_failures(table, part)
    if described["fingerprint"] != fingerprint:
        rows.append("its fingerprint is not the manifest's")
    numbers = [told for column in described["columns"] for told in _number_failures(table, column)]
    return {"rows": [f"{part.name}: {t}" for t in rows], "numbers": [f"{part.name}: {t}" for t in numbers]}


def _row_failures(table: pa.Table, part: Part) -> list[str]:
    told = []
    if not np.array_equal(table["row"].to_numpy(), np.arange(part.start, part.stop)):
        told.append(f"its rows are not {part.start} to {part.stop - 1} in order")
    if (table["shard"].to_numpy() != part.shard).any():
        told.append(f"it holds rows of another shard than {part.shard}")
    errors = len(table) - table["error"].null_count
    tokens = int(table["num_tokens"].drop_null().to_numpy().sum(dtype=np.int64))
    if (errors, tokens) != (part.num_errors, part.num_tokens):
        told.append(f"{errors} error rows and {tokens} tokens, recorded are {part.num_errors} and {part.num_tokens}")
    return told


def _number_failures(table: pa.Table, column: Mapping[str, Any]) -> list[str]:
    """NaN or infinity, missing vectors, wrong lengths of unit vectors."""
    name = column["name"]
    good = table["error"].is_null()
    cells = table[name].filter(good).combine_chunks()
    told = [f"{name}: {cells.null_count} rows without error lack it"] if cells.null_count else []
    values = _flat(cells)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        told.append(f"{name}: NaN or infinity")
    if column["normalize"] and column["dtype"] in _NORM_TOLERANCE and len(values):
        vectors = values.reshape(-1, column["width"]).astype(np.float32)
        if column["dtype"] == "int8":
            vectors = vectors * _flat(table[f"{name}_scale"].filter(good).combine_chunks())[:, None]
        off = float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max())
        if off > _NORM_TOLERANCE[column["dtype"]]:
            told.append(f"{name}: a vector's length is off 1 by {off:.1e}")
    return told


def _flat(cells: pa.Array) -> NDArray:
    while isinstance(cells, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        cells = cells.flatten()
    return cells.to_numpy(zero_copy_only=False)


def _check_coverage(storage: Storage, finished: Manifest, plan: Plan | None) -> Check:
    found = manifest.committed(storage)
    resolved = finished.resolved
    rows = None if plan is None else plan.dataset.shard_rows
    told = manifest.coverage_gaps(found, resolved["num_shards"], resolved["rows_per_part"], rows)
    listed = {part for parts in found.values() for part in parts}
    recorded = {part.range for part in finished.parts}
    told += [
        f"shard {r.shard}, rows [{r.start}, {r.stop}): a part that the manifest does not know"
        for r in listed - recorded
    ]
    told += [f"shard {r.shard}, rows [{r.start}, {r.stop}): its part is gone" for r in recorded - listed]
    return Check("coverage", tuple(told))


def _check_totals(finished: Manifest) -> Check:
    sums = {
        "num_rows": sum(part.range.num_rows for part in finished.parts),
        "num_tokens": sum(part.num_tokens for part in finished.parts),
        "num_errors": sum(part.num_errors for part in finished.parts),
    }
    wrong = [
        f"{name} is {getattr(finished, name)}, its parts have {total}"
        for name, total in sums.items()
        if getattr(finished, name) != total
    ]
    return Check("totals", tuple(wrong))


def _check_canary(plan: Plan, storage: Storage, finished: Manifest) -> Check:
    """Compare other rows than the run did."""
    try:
        seed = int(finished.fingerprint[8:16], 16)
        return Check("canary", tuple(canary.compare(plan, storage, finished.parts, seed=seed)["failed"]))
    except RunError as e:
        return Check("canary", (str(e),))
