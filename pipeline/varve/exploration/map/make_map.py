"""`make_map`: fits the layout on a sample, places all rows part by part, and writes the files next to the parts.

    PATH/maps/NAME/request.json            what the map is made of, written first
    PATH/maps/NAME/_layout/sample.parquet  the positions of the sample
    PATH/maps/NAME/part-....parquet        one for each part of the output that has rows, with the same name
    PATH/maps/NAME/map.json                the record, written last

Invariants: every object is created once, so a map that was interrupted is continued, and two processes write the same
map; memory is that of the sample, a batch of rows and one file.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from varve.errors import JobError, RunError, one_line
from varve.exploration.map.layout import LEAST_ROWS, Layout, Positions, fit_pca, fit_umap
from varve.exploration.map.map_part import OWN_TYPES, X, Y, encode_part, part_name
from varve.exploration.map.map_request import (
    LIBRARIES,
    MAX_NEIGHBOURS,
    METHODS,
    SAMPLE_ROWS,
    MapRequest,
    map_folder,
    read_json,
    save_request,
)
from varve.exploration.map.map_sample import MapSample
from varve.indexing.record import installed_versions
from varve.output import feature_sets
from varve.output.feature_array import find_array_column
from varve.output.output_rows import check_columns
from varve.output.run_output import Output
from varve.retrieval.row_numbers import first_numbers
from varve.storage.object_store import Storage

OnPart = Callable[[int, int], None]  # called with (parts that are written, all parts)


@dataclass(frozen=True, slots=True)
class MapRecord:
    """A finished map.

    Attributes:
        path: of the output.
        name: of the map.
        content: of map.json.
    """

    path: str
    name: str
    content: dict[str, Any]

    @property
    def folder(self) -> str:
        """Where its files are."""
        return f"{self.path}/{map_folder(self.name)}"


def make_map(
    path: str,
    *,
    feature: str | None = None,
    name: str | None = None,
    color: str | None = None,
    method: str = "auto",
    neighbours: int = 15,
    seed: int = 0,
    sample_rows: int = SAMPLE_ROWS,
    text: bool = False,
    on_part: OnPart = lambda _written, _all: None,
) -> MapRecord:
    """Make the map of a feature, or continue it.

    Args:
        path: output of a finished run.
        feature: of one vector per row; None: the only one.
        name: of the map; None: that of the feature.
        color: kept column that is copied to the map.
        method: umap, pca, or auto: umap if umap-learn is installed and there are enough rows.
        neighbours: of each row.
        seed: of the sample and the layout.
        sample_rows: rows that the layout is fitted on, and that are neighbours, at most.
        text: copy the text columns, which the run must have kept.
        on_part: called after each part.

    Raises:
        JobError: an argument is wrong, or a map of this name was made with other values.
        RunError: the output cannot be read, or the store failed.
    """
    output = feature_sets.open(path)
    _check_numbers(method, neighbours, sample_rows)
    column = find_array_column(output, _find_feature(output, feature), ("vector",))
    output = output.led_by(column.name)
    name, storage = name or column.name, Storage(output.path)
    request = MapRequest(
        feature=column.name, method=_choose(method, output), neighbours=neighbours, seed=seed, sample_rows=sample_rows,
        color=color, texts=output.text_columns if text else (), manifest_sha256=output.manifest.sha256,
        fingerprint=output.manifest.fingerprint,
    )  # fmt: skip
    map_folder(name)
    _check_columns(output, request.columns)
    if request.method == "umap":
        _check_umap()
    save_request(storage, name, request)
    if (record := read_json(storage, f"{map_folder(name)}/map.json")) is None:
        record = _write(output, storage, name, request, on_part)
    return MapRecord(output.path, name, record)


def _check_numbers(method: str, neighbours: int, sample_rows: int) -> None:
    if method not in METHODS:
        msg = f"--method: {method!r:.200} is not allowed: expected {', '.join(METHODS)}"
        raise JobError(msg)
    if not 2 <= neighbours <= MAX_NEIGHBOURS:
        msg = f"--neighbours: {neighbours} is not allowed: expected 2 to {MAX_NEIGHBOURS}"
        raise JobError(msg)
    if sample_rows <= neighbours:
        msg = f"--sample: {sample_rows} is not allowed: expected more than the {neighbours} neighbours"
        raise JobError(msg)


def _find_feature(output: Output, feature: str | None) -> str:
    possible = [name for name, column in output.features.items() if column.form == "vector"]
    if feature is None and len(possible) != 1:
        listed = f": choose one with --feature ({', '.join(possible)[:1000]})" if possible else ""
        msg = f"{output.path} has {len(possible)} features of one vector per row{listed}"
        raise JobError(msg)
    return feature or possible[0]


def _choose(method: str, output: Output) -> str:
    if method == "auto":
        parts = output.manifest.parts
        has_rows = parts.num_rows - parts.num_errors - parts.num_null_texts >= LEAST_ROWS
        return "umap" if has_rows and find_spec("umap") else "pca"
    return method


def _check_umap() -> None:
    if find_spec("umap") is None:
        msg = "--method umap needs umap-learn: run pip install '.[map]' in Varve's folder, or add --method pca"
        raise JobError(msg)


def _check_columns(output: Output, names: Sequence[str]) -> None:
    """Check that columns can be copied to a map."""
    check_columns(output, names)
    if taken := [name for name in names if name in OWN_TYPES]:
        msg = f"the column {taken[0]!r} has the name of a column of the map. Rename it in the job file"
        raise JobError(msg)
    if features := [name for name in names if name in output.features]:
        msg = f"--color {features[0]} is a feature: expected one of {', '.join(output.other_columns)[:1000]}"
        raise JobError(msg)


def _write(output: Output, storage: Storage, name: str, request: MapRequest, on_part: OnPart) -> dict[str, Any]:
    """Write what is missing; returns the record."""
    sample = MapSample.read(output, request.feature, request.sample_rows, request.seed)
    layout = _fit(storage, name, request, sample)
    parts, firsts = output.manifest.parts, first_numbers(output)
    written = {each.name for each in storage.list(map_folder(name))}
    for number, part in enumerate(parts):
        file = part_name(name, part)
        if part.range.num_rows and file not in written:
            storage.create(file, encode_part(output, part, int(firsts[number]), request, sample, layout))
        on_part(number + 1, len(parts))
    record = asdict(request) | {
        "num_rows": output.manifest.num_rows,
        "num_sampled": len(sample.numbers),
        "versions": installed_versions(LIBRARIES),
    }
    storage.create(f"{map_folder(name)}/map.json", (json.dumps(record, indent=1) + "\n").encode())
    return record


def _fit(storage: Storage, name: str, request: MapRequest, sample: MapSample) -> Layout:
    """The layout: a stored one, if an earlier command has fitted it."""
    file, pca = f"{map_folder(name)}/_layout/sample.parquet", None
    if request.method == "pca":
        pca = fit_pca(sample.search.vectors)
    stored = storage.read(file)
    if stored is None:
        fitted = pca or fit_umap(sample.search, request.neighbours, request.seed)
        storage.create(file, _encode(sample, fitted.sample))
        stored = storage.read(file)  # that of another process, if it was first
    positions = _decode(f"{storage.uri}/{file}", stored or b"", sample)
    return Layout(positions, pca.mean, pca.components) if pca else Layout(positions)


def _encode(sample: MapSample, positions: Positions) -> bytes:
    content = io.BytesIO()
    columns: Sequence[Any] = (sample.numbers, positions[:, 0], positions[:, 1])
    pq.write_table(pa.table(dict(zip(("number", X, Y), map(pa.array, columns), strict=True))), content)
    return content.getvalue()


def _decode(address: str, content: bytes, sample: MapSample) -> Positions:
    try:
        table = pq.read_table(io.BytesIO(content))
        numbers, x, y = (table[name].to_numpy() for name in ("number", X, Y))
    except (pa.ArrowException, KeyError, OSError) as e:
        msg = f"{address} cannot be read: {one_line(e)}. Delete the folder of the map, and make it again"
        raise RunError(msg) from e
    if not np.array_equal(numbers, sample.numbers):
        msg = f"{address} has other rows than the sample. Delete the folder of the map, and make it again"
        raise RunError(msg)
    return np.stack([x, y], axis=1).astype(np.float32)
