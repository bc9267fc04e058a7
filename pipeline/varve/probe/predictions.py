"""A probe's predictions for another run of the same features, laid beside its parts.

    PATH/predictions/NAME/probe.json                the probe that made them, written first
    PATH/predictions/NAME/part-SSSSS-...parquet     one file to a part, the same rows in the same order

Knows nothing of training. Nothing of the run itself is touched. Invariant: files are created if absent, and one folder
holds the predictions of one probe, so the same command again goes on where it stopped.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.errors import JobError, RunError
from varve.output.part_file import DATA_PREFIX, Part
from varve.output.schema import METADATA_KEY
from varve.output.vectors import read_vectors
from varve.probe.data.run_output import Output, stored_names
from varve.probe.saved_probe import Probe

PREFIX = "predictions"
_ROW = ("error", "shard", "row")
_OWN = ("prediction", "probability", "probabilities")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What `predict` did."""

    path: str
    num_rows: int
    num_errors: int  # rows without features, which have no prediction
    num_parts: int
    made_before: int  # parts
    counts: dict[str, int]  # class → rows, of the parts made now


def predict(
    probe: Probe,
    output: Output,
    name: str,
    *,
    keep: Sequence[str] = (),
    on_part: Callable[[int, int], None] = lambda _done, _of: None,
) -> Predicted:
    """Write a prediction for each row of a run.

    Args:
        probe: the trained probe.
        output: the run.
        name: of the folder below `PATH/predictions`.
        keep: columns of the run to carry along.
        on_part: called with (parts done, parts in all).

    Raises:
        JobError: the run has other features, lacks a column, or another probe's predictions have this name.
        RunError: the store failed.
    """
    probe.refuse_others(output)
    if own := next((column for column in keep if column in _OWN), None):
        msg = f"--keep {own}: predictions have a column of that name"
        raise JobError(msg)
    wanted = [*(column.name for column in probe.handcrafted), *keep]
    for column in wanted:
        if column not in output.others:
            msg = f"there is no column {column!r}: beside features the run has {', '.join(output.others)}"
            raise JobError(msg)
    _claim(probe, output, name, keep)
    there = {found.name for found in output.storage.list(f"{PREFIX}/{name}")}
    counts = np.zeros(len(probe.classes), np.int64)
    before = 0
    for done, part in enumerate(output.manifest.parts, 1):
        target = f"{PREFIX}/{name}/{part.name.removeprefix(f'{DATA_PREFIX}/')}"
        if target in there:
            before += 1
        else:
            table, found = _table(probe, output, part, wanted, keep)
            _write(output, target, table)
            counts += np.bincount(found, minlength=len(counts)) if probe.classes else 0
        on_part(done, len(output.manifest.parts))
    manifest = output.manifest
    named = dict(zip(probe.classes, counts.tolist(), strict=True))
    uri = f"{output.storage.uri}/{PREFIX}/{name}"
    return Predicted(uri, manifest.num_rows, manifest.num_errors, len(manifest.parts), before, named)


def _claim(probe: Probe, output: Output, name: str, keep: Sequence[str]) -> None:
    """Write probe.json first: a folder belongs to one probe."""
    content = json.dumps({**probe.to_json(), "sha256": _identity(probe), "keep": list(keep)}, indent=1).encode()
    target = f"{PREFIX}/{name}/probe.json"
    if output.storage.create(target, content):
        return
    there = json.loads(output.storage.read(target) or b"{}")
    if (there.get("sha256"), there.get("keep")) != (_identity(probe), list(keep)):
        msg = (
            f"{output.storage.uri}/{PREFIX}/{name} holds the predictions of another probe or with other --keep columns"
            ": choose another --name"
        )
        raise JobError(msg)


def _identity(probe: Probe) -> str:
    """SHA-256 over all that decides a prediction."""
    content = probe.to_json()
    digest = hashlib.sha256(json.dumps({key: content[key] for key in ("classes", "features", "handcrafted")}).encode())
    for name, values in sorted(probe.head.state().items()):
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def _table(
    probe: Probe, output: Output, part: Part, wanted: Sequence[str], keep: Sequence[str]
) -> tuple[pa.Table, NDArray[np.integer]]:
    """(the predictions of a part, the class of each row that has one)."""
    table = output.read(part, list(dict.fromkeys([*stored_names(probe.features), *wanted, *_ROW])))
    good = table["error"].is_null().to_numpy()
    rows = table.filter(pa.array(good))
    columns: dict[str, Any] = {column.name: read_vectors(rows, column) for column in probe.features}
    columns |= {column.name: rows[column.name] for column in probe.handcrafted}
    width = (len(probe.classes),) if probe.classes else ()
    found = probe(columns) if rows.num_rows else np.empty((0, *width), np.float32)
    spread = np.zeros((len(good), *width), np.float32)
    spread[good] = found
    missing = pa.array(~good)
    told: dict[str, Any] = {name: table[name] for name in keep}
    best = spread.argmax(axis=1) if probe.classes else np.empty(0, np.int64)
    if probe.classes:
        told["prediction"] = pa.array(probe.classes).take(pa.array(best, mask=~good))
        told["probability"] = pa.array(spread[np.arange(len(best)), best], mask=~good)
        kind = pa.list_(pa.float32(), len(probe.classes))
        told["probabilities"] = pa.FixedSizeListArray.from_arrays(pa.array(spread.ravel()), type=kind, mask=missing)
    else:
        told["prediction"] = pa.array(spread, mask=~good)
    told |= {name: table[name] for name in _ROW}
    metadata = {METADATA_KEY: json.dumps({"probe": _identity(probe), "label": probe.label, "classes": probe.classes})}
    return pa.table(told).replace_schema_metadata(metadata), best[good] if probe.classes else best


def _write(output: Output, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1)
    if not output.storage.create(name, buffer.getvalue()):
        msg = f"{output.storage.uri}/{name} was written by somebody else meanwhile. Run the same command again"
        raise RunError(msg)
