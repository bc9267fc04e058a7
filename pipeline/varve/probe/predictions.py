"""Writes a probe's predictions for another run of the same features, below that run's output.

    PATH/predictions/NAME/probe.json                the probe that made them, written first
    PATH/predictions/NAME/part-SSSSS-...parquet     one file per part, with the same rows in the same order

Knows nothing of training, and changes no file of the run. Invariant: files are created only if absent, and one folder
holds the predictions of one probe, so the same command resumes where it stopped.
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
from varve.output.json_text import MAX_BYTES, parse_object
from varve.output.part_file import DATA_PREFIX, Part
from varve.output.run_output import Output, stored_names
from varve.output.schema import METADATA_KEY
from varve.output.vectors import read_vectors
from varve.probe.saved_probe import Probe

_PREFIX = "predictions"
_ROW_COLUMNS = ("error", "shard", "row")
_PREDICTION_COLUMNS = ("prediction", "probability", "probabilities")


@dataclass(frozen=True, slots=True)
class Predicted:
    """The result of `predict`."""

    path: str
    num_rows: int
    num_errors: int  # rows without features and so without a prediction
    num_parts: int
    made_before: int  # parts that an earlier call wrote
    counts: dict[str, int]  # class → rows, in the parts that this call wrote


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
        keep: columns of the run to copy to the predictions.
        on_part: called with (parts done, parts in all).

    Raises:
        JobError: the run has other features or lacks a column, or another probe's predictions have this name.
        RunError: the store failed.
    """
    probe.check_run(output)
    if own := next((column for column in keep if column in _PREDICTION_COLUMNS), None):
        msg = f"--keep {own}: predictions have a column of this name"
        raise JobError(msg)
    read = [*(column.name for column in probe.handcrafted), *keep]
    for column in read:
        if column not in output.other_columns:
            msg = f"no column {column!r}: besides features the run has {', '.join(output.other_columns)}"
            raise JobError(msg)
    _claim(probe, output, name, keep)
    source = output.only([*stored_names(probe.features), *read])
    existing = {found.name for found in output.storage.list(f"{_PREFIX}/{name}")}
    counts = np.zeros(len(probe.classes), np.int64)
    made_before = 0
    for done, part in enumerate(source.manifest.parts, 1):
        target = f"{_PREFIX}/{name}/{part.name.removeprefix(f'{DATA_PREFIX}/')}"
        if target in existing:
            made_before += 1
        else:
            table, predicted = _predict_part(probe, source, part, read, keep)
            _write(output, target, table)
            counts += np.bincount(predicted, minlength=len(counts)) if probe.classes else 0
        on_part(done, len(source.manifest.parts))
    manifest = source.manifest
    return Predicted(
        path=f"{output.storage.uri}/{_PREFIX}/{name}",
        num_rows=manifest.num_rows,
        num_errors=manifest.num_errors + manifest.num_null_texts,
        num_parts=len(manifest.parts),
        made_before=made_before,
        counts=dict(zip(probe.classes, counts.tolist(), strict=True)),
    )


def _claim(probe: Probe, output: Output, name: str, keep: Sequence[str]) -> None:
    """Write probe.json first: a folder belongs to one probe."""
    content = json.dumps({**probe.to_json(), "sha256": _identity(probe), "keep": list(keep)}, indent=1).encode()
    target = f"{_PREFIX}/{name}/probe.json"
    if output.storage.create(target, content):
        return
    try:
        existing = parse_object(output.storage.read_at_most(target, MAX_BYTES) or b"{}")
        is_same = (existing["sha256"], existing["keep"]) == (_identity(probe), list(keep))
    except (ValueError, LookupError, TypeError):
        is_same = False  # not written by this version
    if not is_same:
        msg = (
            f"{output.storage.uri}/{_PREFIX}/{name} holds the predictions of another probe or with other --keep columns"
            ": choose another --name"
        )
        raise JobError(msg)


def _identity(probe: Probe) -> str:
    """SHA-256 of all that decides a prediction."""
    content = probe.to_json()
    digest = hashlib.sha256(json.dumps({key: content[key] for key in ("classes", "features", "handcrafted")}).encode())
    for name, values in sorted(probe.head.state().items()):
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def _predict_part(
    probe: Probe, output: Output, part: Part, read: Sequence[str], keep: Sequence[str]
) -> tuple[pa.Table, NDArray[np.integer]]:
    """(the predictions of a part's R rows, the class of each row that has one)."""
    table = output.read(part, list(dict.fromkeys([*stored_names(probe.features), *read, *_ROW_COLUMNS])))
    good = table["error"].is_null().to_numpy()
    rows = table.filter(pa.array(good))
    inputs: dict[str, Any] = {column.name: read_vectors(rows, column) for column in probe.features}
    inputs |= {column.name: rows[column.name] for column in probe.handcrafted}
    scores = np.zeros((len(good), *((len(probe.classes),) if probe.classes else ())), np.float32)
    if rows.num_rows:
        scores[good] = probe(inputs)
    missing = pa.array(~good)
    columns: dict[str, Any] = {name: table[name] for name in keep}
    best = scores.argmax(axis=1) if probe.classes else np.empty(0, np.int64)
    if probe.classes:
        columns["prediction"] = pa.array(probe.classes).take(pa.array(best, mask=~good))
        columns["probability"] = pa.array(scores[np.arange(len(best)), best], mask=~good)
        kind = pa.list_(pa.float32(), len(probe.classes))
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), type=kind, mask=missing)
    else:
        columns["prediction"] = pa.array(scores, mask=~good)
    columns |= {name: table[name] for name in _ROW_COLUMNS}
    metadata = {METADATA_KEY: json.dumps({"probe": _identity(probe), "label": probe.label, "classes": probe.classes})}
    return pa.table(columns).replace_schema_metadata(metadata), best[good] if probe.classes else best


def _write(output: Output, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1)
    if not output.storage.create(name, buffer.getvalue()):
        msg = f"{output.storage.uri}/{name} was written by another process in the meantime. Run the same command again"
        raise RunError(msg)
