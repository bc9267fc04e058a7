"""Vectors and hand-crafted numbers of each split: in memory if they fit, otherwise in a file of raw float32.

Knows nothing of models. Invariants: the values do not depend on where they are stored; a file is read in chunks of
bounded size and never mapped, so memory stays bounded for any number of rows.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.errors import RunError
from varve.output.run_output import Output, stored_names
from varve.output.vectors import read_vectors
from varve.probe.data.dataset import LabelledRows
from varve.probe.data.split import NAMES

# A file is shuffled by blocks of so many rows: random reads of about a megabyte.
_BLOCK_ROWS = 256
_CHUNK_BYTES = 32 * 1024 * 1024
_SHUFFLE_BYTES = 128 * 1024 * 1024
# A solver holds a standardised copy of the matrix and some more.
_COPIES = 2.5


@dataclass(frozen=True)
class Matrix:
    """The inputs of the N rows of one split, D float32 each."""

    num_rows: int
    width: int
    values: NDArray[np.float32] | None  # (N, D); None: in the file
    path: Path | None = None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop)."""
        if self.values is not None:
            return self.values[start:stop]
        assert self.path is not None
        count, offset = (stop - start) * self.width, start * self.width * 4
        return np.fromfile(self.path, np.float32, count, offset=offset).reshape(-1, self.width)

    def chunks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of successive chunks of bounded size."""
        step = max(1, _CHUNK_BYTES // (4 * self.width))
        for start in range(0, self.num_rows, step):
            yield start, self.rows(start, min(start + step, self.num_rows))

    def batches(self, seed: Sequence[int], batch_rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(row numbers, rows) of one shuffled epoch: blocks in random order, then rows within many blocks."""
        rng = np.random.default_rng(seed)
        blocks = rng.permutation(-(-self.num_rows // _BLOCK_ROWS))
        at_once = max(1, _SHUFFLE_BYTES // (4 * self.width * _BLOCK_ROWS), batch_rows // _BLOCK_ROWS)
        for first in range(0, len(blocks), at_once):
            starts = np.sort(blocks[first : first + at_once]) * _BLOCK_ROWS
            stops = np.minimum(starts + _BLOCK_ROWS, self.num_rows)
            numbers = np.concatenate([np.arange(*ends) for ends in zip(starts, stops, strict=True)])
            rows = np.concatenate([self.rows(*ends) for ends in zip(starts.tolist(), stops.tolist(), strict=True)])
            order = rng.permutation(len(numbers))
            for start in range(0, len(order), batch_rows):
                batch = order[start : start + batch_rows]
                yield numbers[batch], rows[batch]


@contextmanager
def build_matrices(
    output: Output, rows: LabelledRows, columns: Sequence[Column], memory_bytes: int, *, with_handcrafted: bool
) -> Iterator[dict[int, Matrix]]:
    """split → its matrix: the vectors of the columns side by side, then the hand-crafted numbers.

    Args:
        output: that holds the vectors.
        rows: which of its rows are used, and their splits.
        columns: the features; may be empty.
        memory_bytes: limit of the matrices in memory; larger ones are files below TMPDIR until the context ends.
        with_handcrafted: whether hand-crafted numbers are inputs too.

    Raises:
        RunError: a part is damaged, a vector is not finite, or the disk is full.
    """
    handcrafted = rows.handcrafted if with_handcrafted else rows.handcrafted[:, :0]
    width = sum(column.width for column in columns) + handcrafted.shape[1]
    sizes = list(rows.sizes.values())
    if not columns:
        yield {which: Matrix(sizes[which], width, handcrafted[rows.in_split(which)]) for which in range(len(NAMES))}
    elif sum(sizes) * width * 4 * _COPIES <= memory_bytes:
        arrays = [np.empty((size, width), np.float32) for size in sizes]
        filled = [0] * len(arrays)
        for which, chunk in _read_chunks(output, rows, columns, handcrafted):
            arrays[which][filled[which] : filled[which] + len(chunk)] = chunk
            filled[which] += len(chunk)
        yield {which: Matrix(sizes[which], width, values) for which, values in enumerate(arrays)}
    else:
        with TemporaryDirectory(prefix="varve-probe-") as folder:
            paths = [Path(folder, name) for name in NAMES]
            _write(paths, _read_chunks(output, rows, columns, handcrafted), sum(sizes) * width * 4)
            yield {which: Matrix(sizes[which], width, None, path) for which, path in enumerate(paths)}


def _write(paths: Sequence[Path], chunks: Iterator[tuple[int, NDArray[np.float32]]], num_bytes: int) -> None:
    folder = paths[0].parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        msg = (
            f"{folder.parent} has {free / 1e9:.1f} GB free, and these features need {num_bytes / 1e9:.1f} GB beyond "
            "--memory. Set TMPDIR to a larger disk, or name fewer --features"
        )
        raise RunError(msg)
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for which, chunk in chunks:
                chunk.tofile(files[which])
    except OSError as e:
        msg = f"{folder}: {e}. Set TMPDIR to a larger disk"
        raise RunError(msg) from e


def _read_chunks(
    output: Output, rows: LabelledRows, columns: Sequence[Column], handcrafted: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(split, its rows) of each part, in order."""
    first = first_used = 0  # row of the part, in the run and among the used rows
    for part, table in output.tables(stored_names(columns)):
        used = rows.used[first : first + table.num_rows]
        first += table.num_rows
        count = int(used.sum())
        if not count:
            continue
        used_rows = table if used.all() else table.filter(pa.array(used))
        del table  # parts are large: at most two copies at once
        numbers = handcrafted[first_used : first_used + count]
        inputs = np.hstack([*(read_vectors(used_rows, column) for column in columns), numbers])
        del used_rows
        if not np.isfinite(inputs.sum(dtype=np.float64)):
            msg = f"{output.storage.uri}/{part.name}: a vector holds NaN or infinity. See `varve verify`"
            raise RunError(msg)
        splits = rows.split[first_used : first_used + count]
        first_used += count
        for which in range(len(NAMES)):
            yield which, inputs[splits == which]


def moments(matrix: Matrix, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """((width,) mean, (width,) standard deviation) of the first columns, in two passes; 1 if a column is constant."""
    total, square = np.zeros(width), np.zeros(width)
    for _, chunk in matrix.chunks():
        total += chunk[:, :width].sum(axis=0, dtype=np.float64)
    mean = (total / matrix.num_rows).astype(np.float32)
    for _, chunk in matrix.chunks():
        centred = chunk[:, :width] - mean
        square += np.einsum("rw,rw->w", centred, centred, dtype=np.float64)  # the square of 1e-30 is 0 in float32
    scale = np.sqrt(square / matrix.num_rows).astype(np.float32)
    return mean, np.where(scale > 1e-6 * np.abs(mean), scale, np.float32(1))
