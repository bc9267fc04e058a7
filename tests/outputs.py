"""Writes outputs like those of finished runs from given arrays, without a model or Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from varve.encoder.feature_plan import Column, FeaturePlan
from varve.encoder.ragged import Ragged
from varve.indexing.rows import SparseVectors, take
from varve.output.manifest import Manifest, publish
from varve.output.part_file import write_part
from varve.output.part_table import PartTable
from varve.output.schema import feature_arrays, output_schema
from varve.ranges import Range
from varve.storage.object_store import Storage

PROVENANCE = {
    "version": "0.1.0",
    "fingerprint": "f" * 64,
    "model": "a-model",
    "revision": None,
    "weights_sha256": "w" * 64,
    "tokenizer_sha256": "t" * 64,
    "max_tokens": 128,
    "versions": {},
}


def column(name: str, width: int, *, pool="cls", layer=0, **changes) -> Column:
    base = {"pool": pool, "layers": (layer,), "combine": None, "normalize": False, "dtype": "float32", "form": "vector"}
    return Column(name=name, width=width, **{**base, **changes})


def write_output(
    path: Path | str, features: dict, kept: dict, *, rows_per_part=200, errors=(), shards=None, **provenance
) -> str:
    """Write a finished run.

    Args:
        path: folder or address.
        features: column definition → (R, width) float32, which are converted to the dtype of the column; sparse
            vectors; or lists of vectors, for windows, chunks and late interaction.
        kept: name → values of R rows.
        rows_per_part: rows of each part.
        errors: rows without features.
        shards: number of rows of each shard, which may be 0; by default one shard has all rows.
        provenance: replaces values of `PROVENANCE`, the metadata of the model.
    """
    metadata = {**PROVENANCE, **provenance}
    storage = Storage(str(path))
    kept_table = pa.table(kept)
    rows = kept_table.num_rows
    columns = tuple(features)
    plan = FeaturePlan(columns, 12, 12, special_tokens=False)
    schema = output_schema(plan, kept_table.schema, pairs=False, metadata=metadata)
    good = np.ones(rows, np.bool_)
    good[list(errors)] = False
    parts = []
    for shard, first, start, stop in _cells(shards or [rows], rows_per_part):
        encoded = good[start:stop]
        arrays = feature_arrays(plan, _stored(features, start, stop, encoded), encoded, pairs=False)
        reasons = pa.array([None if ok else "worker died" for ok in encoded], pa.string())
        table = pa.table(
            {
                **{name: kept_table[name].slice(start, stop - start) for name in kept_table.column_names},
                **arrays,
                "num_tokens": pa.array(np.where(encoded, 10, 0), pa.int32(), mask=~encoded),
                "truncated": pa.array(np.zeros(stop - start, bool), mask=~encoded),
                "error": reasons,
                "shard": pa.array(np.full(stop - start, shard, np.int32)),
                "row": pa.array(np.arange(start - first, stop - first)),
            },
            schema=schema,
        )
        parts.append(write_part(storage, Range(shard, start - first, stop - first), table, metadata["fingerprint"]))
    storage.create("_varve/job.json", json.dumps({"fingerprint": metadata["fingerprint"]}).encode())
    publish(storage, make_manifest(storage, metadata, rows, len(errors), parts))
    return str(path)


def _cells(shards: list, rows_per_part: int):
    """(shard, its first row, first row of a part, last + 1), rows counted over all shards."""
    first = 0
    for shard, rows in enumerate(shards):
        for start in range(first, first + max(rows, 1), rows_per_part):
            yield shard, first, start, min(start + rows_per_part, first + rows)
        first += rows


def _stored(features: dict, start: int, stop: int, encoded: np.ndarray) -> dict:
    stored = {}
    for definition, values in features.items():
        if isinstance(values, SparseVectors | Ragged):
            stored |= _stored_lists(definition, take(values, np.arange(start, stop)[encoded]))
            continue
        if definition.form == "windows":  # one per row
            lists = Ragged(values[start:stop][encoded], np.arange(int(encoded.sum()) + 1))
            stored |= _stored_lists(definition, lists)
            continue
        vectors = np.asarray(values)[start:stop][encoded]
        if definition.dtype == "int8":
            scales = np.abs(vectors).max(axis=1) / 127
            stored[definition.scale_name] = scales.astype(np.float32)
            vectors = np.round(vectors / scales[:, None]).astype(np.int8)
        elif definition.dtype == "binary":
            vectors = np.packbits(vectors > 0, axis=1)
        kinds = {"float16": np.float16, "float32": np.float32}
        stored[definition.name] = vectors.astype(kinds.get(definition.dtype, vectors.dtype))
    return stored


def _stored_lists(definition: Column, values: SparseVectors | Ragged) -> dict:
    """Columns of sparse vectors, of windows or chunks, or of late interaction; float32 or float16."""
    if isinstance(values, SparseVectors):
        return {f"{definition.name}_ids": values.ids, f"{definition.name}_weights": values.weights}
    vectors = Ragged(values.values.astype(definition.dtype), values.offsets)
    spans = Ragged(np.zeros((len(values.values), 2), np.int32), values.offsets)
    if definition.form in {"windows", "chunks"}:
        return {definition.name: vectors, definition.form: spans}
    tokens = Ragged(np.zeros(len(values.values), np.int32), values.offsets)
    late = {f"{definition.name}_input_ids": tokens, f"{definition.name}_offsets": spans}
    return {definition.name: vectors} | (late if definition.form == "late" else {})


def make_manifest(storage: Storage, metadata: dict, rows: int, errors: int, parts: list) -> Manifest:
    job = {"source": {"dataset": "docs", "text": "text"}, "model": {"name": metadata["model"], "long_text": "truncate"}}
    return Manifest(
        path=storage.uri, fingerprint=metadata["fingerprint"], started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00", num_rows=rows, num_tokens=10 * (rows - errors), num_errors=errors,
        num_truncated=0, file_bytes=sum(part.file_bytes for part in parts), counts={},
        storage={"create_if_absent": True, "retries": 0}, seconds={}, stages={}, encoder={}, versions={},
        job=job, resolved={}, canary={"rows": 3, "passed": True, "features": {}}, parts=PartTable.of(parts),
    )  # fmt: skip
