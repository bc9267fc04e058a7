"""One Parquet file of a map: the rows of one part of the output.

Columns: shard int32, row int64, x and y float32, neighbours, then copied columns of the output. `neighbours` has the
form that embedding-atlas reads: ids (int64, the number of a row over the whole output, as files sorted by name list
them) and distances (float32, 1 - cosine similarity), the nearest first; a row is not its own neighbour. Rows without a
vector have null in x, y and neighbours.
"""

import io
import posixpath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.exploration.map.layout import Layout
from varve.exploration.map.map_request import MapRequest, map_folder
from varve.exploration.map.map_sample import MapSample
from varve.exploration.map.sample_search import unit_length
from varve.output.part_file import Part
from varve.output.run_output import Output
from varve.output.vectors import read_vectors

X, Y, NEIGHBOURS = "x", "y", "neighbours"
_BATCH_ROWS = 4096
_NEIGHBOURS = pa.struct({"ids": pa.list_(pa.int64()), "distances": pa.list_(pa.float32())})
# The columns of every map, in their order.
OWN_TYPES = {"shard": pa.int32(), "row": pa.int64(), X: pa.float32(), Y: pa.float32(), NEIGHBOURS: _NEIGHBOURS}


def part_name(name: str, part: Part) -> str:
    """The file of a part of the output in the map of this name."""
    return f"{map_folder(name)}/{posixpath.basename(part.name)}"


def encode_part(
    output: Output, part: Part, first: int, request: MapRequest, sample: MapSample, layout: Layout
) -> bytes:
    """The file of one part.

    Args:
        output: of the run.
        part: one of its parts.
        first: number of its first row over the whole output.
        request: of the map.
        sample: the rows that the layout was fitted on.
        layout: their positions.

    Raises:
        RunError: the part is missing or damaged.
    """
    column = output.features[request.feature]
    names = list(dict.fromkeys([*column.stored_names, "shard", "row", *request.columns]))
    schema = _schema(output, request)
    content = io.BytesIO()
    with pq.ParquetWriter(content, schema, compression="zstd") as writer:
        for table in output.batches(part, names, _BATCH_ROWS):
            placed = _place(table, column, first, request.neighbours, sample, layout)
            copied = {name: table[name] for name in ("shard", "row", *request.columns)}
            writer.write_table(pa.table({**copied, **placed}).select(schema.names).cast(schema))
            first += len(table)
    return content.getvalue()


def _schema(output: Output, request: MapRequest) -> pa.Schema:
    own = [
        *(output.schema.field(name) for name in ("shard", "row")), pa.field(X, pa.float32()), pa.field(Y, pa.float32()),
        pa.field(NEIGHBOURS, _NEIGHBOURS),
    ]  # fmt: skip
    return pa.schema([*own, *(output.schema.field(name) for name in request.columns)])


def _place(
    table: pa.Table, column: Column, first: int, k: int, sample: MapSample, layout: Layout
) -> dict[str, pa.Array]:
    """x, y and neighbours of consecutive rows, of which the first has the number `first`."""
    filled = table[column.name].is_valid().to_numpy()
    numbers = first + np.flatnonzero(filled)
    vectors = unit_length(read_vectors(table, column))
    positions = np.full((len(table), 2), np.nan, np.float32)
    ids, distances = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32)
    if len(numbers):
        nearest, scores = sample.search.nearest(vectors, min(k + 1, len(sample.numbers)))
        own, known = sample.row_of(numbers)
        placed = layout.place(vectors, nearest)
        placed[known] = layout.sample[own[known]]
        positions[filled] = placed
        ids, distances = _without_itself(sample.numbers[nearest], 1 - scores, numbers)
    x, y = (pa.array(positions[:, axis], mask=~filled) for axis in (0, 1))
    return {X: x, Y: y, NEIGHBOURS: _structs(ids, np.maximum(distances, 0), filled)}


def _without_itself(
    ids: NDArray[np.int64], distances: NDArray[np.float32], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All columns but one: the row itself where it is listed, else the farthest."""
    is_own = ids == numbers[:, None]
    left_out = np.where(is_own.any(axis=1), is_own.argmax(axis=1), ids.shape[1] - 1)
    kept = np.arange(ids.shape[1])[None] != left_out[:, None]
    shape = (len(ids), ids.shape[1] - 1)
    return ids[kept].reshape(shape), distances[kept].reshape(shape)


def _structs(ids: NDArray[np.int64], distances: NDArray[np.float32], filled: NDArray[np.bool_]) -> pa.StructArray:
    lengths = np.where(filled, ids.shape[1], 0)
    offsets = pa.array(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values.ravel())) for values in (ids, distances)]
    return pa.StructArray.from_arrays(lists, fields=list(_NEIGHBOURS), mask=pa.array(~filled))
