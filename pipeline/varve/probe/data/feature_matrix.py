"""Vectors and hand-crafted numbers of the rows of each split: in memory where they fit, else in a file of raw float32.

Knows nothing of models. Invariants: what is read of a matrix does not depend on where it lies; a file is read in pieces
of bounded size, never mapped, so memory stays bounded however many rows there are.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.errors import RunError
from varve.output.vectors import read_vectors
from varve.probe.data.dataset import Rows
from varve.probe.data.run_output import Output, stored_names
from varve.probe.data.split import NAMES

# Rows of a file that are read at once while it is shuffled: random reads of about a megabyte.
_BLOCK_ROWS = 256
_PIECE_BYTES = 32 * 1024 * 1024
_SHUFFLE_BYTES = 128 * 1024 * 1024
# A solver holds a standardised copy beside the matrix.
_COPIES = 2.5


@dataclass(frozen=True)
class Matrix:
    """The inputs of the rows of one split, (N, D) float32."""

    num_rows: int
    width: int
    held: NDArray[np.float32] | None
    path: Path | None = None

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop)."""
        if self.held is not None:
            return self.held[start:stop]
        assert self.path is not None
        count, offset = (stop - start) * self.width, start * self.width * 4
        return np.fromfile(self.path, np.float32, count, offset=offset).reshape(-1, self.width)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) from first to last, in pieces of bounded size."""
        step = max(1, _PIECE_BYTES // (4 * self.width))
        for start in range(0, self.num_rows, step):
            yield start, self.rows(start, min(start + step, self.num_rows))

    def batches(self, seed: Sequence[int], batch_rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(numbers of rows, rows) of one epoch, shuffled: blocks in random order, then rows among many blocks."""
        draw = np.random.default_rng(seed)
        blocks = draw.permutation(-(-self.num_rows // _BLOCK_ROWS))
        at_once = max(1, _SHUFFLE_BYTES // (4 * self.width * _BLOCK_ROWS), batch_rows // _BLOCK_ROWS)
        for first in range(0, len(blocks), at_once):
            chosen = np.sort(blocks[first : first + at_once]) * _BLOCK_ROWS
            stops = np.minimum(chosen + _BLOCK_ROWS, self.num_rows)
            numbers = np.concatenate([np.arange(*ends) for ends in zip(chosen, stops, strict=True)])
            many = np.concatenate([self.rows(*ends) for ends in zip(chosen.tolist(), stops.tolist(), strict=True)])
            order = draw.permutation(len(numbers))
            for start in range(0, len(order), batch_rows):
                taken = order[start : start + batch_rows]
                yield numbers[taken], many[taken]


@contextmanager
def lay_out(
    output: Output, rows: Rows, columns: Sequence[Column], memory_bytes: int, *, with_handcrafted: bool
) -> Iterator[dict[int, Matrix]]:
    """split → its matrix: the vectors of the columns side by side, then the hand-crafted numbers.

    Args:
        output: where the vectors are.
        rows: which of its rows take part.
        columns: the features; without any only hand-crafted numbers are laid out.
        memory_bytes: what may be held; beyond it the matrices lie in files below TMPDIR until the context ends.
        with_handcrafted: whether hand-crafted numbers are laid beside.

    Raises:
        RunError: a part is damaged, a vector is not finite, or the disk is full.
    """
    beside = rows.handcrafted if with_handcrafted else rows.handcrafted[:, :0]
    width = sum(column.width for column in columns) + beside.shape[1]
    sizes = np.bincount(rows.split, minlength=len(NAMES)).tolist()
    if not columns:
        yield {side: Matrix(sizes[side], width, beside[rows.of(side)]) for side in range(len(NAMES))}
        return
    if sum(sizes) * width * 4 * _COPIES <= memory_bytes:
        held = [np.empty((size, width), np.float32) for size in sizes]
        filled = [0] * len(held)
        for side, piece in _pieces(output, rows, columns, beside):
            held[side][filled[side] : filled[side] + len(piece)] = piece
            filled[side] += len(piece)
        yield {side: Matrix(sizes[side], width, values) for side, values in enumerate(held)}
        return
    with TemporaryDirectory(prefix="varve-probe-") as folder:
        paths = [Path(folder, name) for name in NAMES]
        _write(paths, _pieces(output, rows, columns, beside), sum(sizes) * width * 4)
        yield {side: Matrix(sizes[side], width, None, path) for side, path in enumerate(paths)}


def _write(paths: Sequence[Path], pieces: Iterator[tuple[int, NDArray[np.float32]]], num_bytes: int) -> None:
    free = os.statvfs(paths[0].parent)
    if free.f_bavail * free.f_frsize < num_bytes:
        msg = (
            f"{paths[0].parent.parent} has {free.f_bavail * free.f_frsize / 1e9:.1f} GB free, and these features take "
            f"{num_bytes / 1e9:.1f} GB beyond --memory. Set TMPDIR to a larger disk, or name fewer --features"
        )
        raise RunError(msg)
    files = [path.open("wb") for path in paths]
    try:
        for side, piece in pieces:
            piece.tofile(files[side])
    except OSError as e:
        msg = f"{paths[0].parent}: {e}. Set TMPDIR to a larger disk"
        raise RunError(msg) from e
    finally:
        for file in files:
            file.close()


def _pieces(
    output: Output, rows: Rows, columns: Sequence[Column], beside: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(split, its rows) of each part, in order."""
    seen = taken = 0
    for part, table in output.tables(stored_names(columns)):
        used = rows.used[seen : seen + table.num_rows]
        seen += table.num_rows
        count = int(used.sum())
        if not count:
            continue
        good = table if used.all() else table.filter(pa.array(used))
        del table
        inputs = np.hstack([*(read_vectors(good, column) for column in columns), beside[taken : taken + count]])
        del good
        if not np.isfinite(inputs.sum(dtype=np.float64)):
            msg = f"{output.storage.uri}/{part.name}: a vector holds NaN or infinity. See `varve verify`"
            raise RunError(msg)
        sides = rows.split[taken : taken + count]
        taken += count
        for side in range(len(NAMES)):
            yield side, inputs[sides == side]


def moments(matrix: Matrix, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(mean, standard deviation) of the first columns of a matrix, in two passes; 1 where a column is constant."""
    total, square = np.zeros(width), np.zeros(width)
    for _, piece in matrix.pieces():
        total += piece[:, :width].sum(axis=0, dtype=np.float64)
    mean = (total / matrix.num_rows).astype(np.float32)
    for _, piece in matrix.pieces():
        off = piece[:, :width] - mean
        square += np.einsum("rw,rw->w", off, off, dtype=np.float64)  # in float32 the square of 1e-30 is 0
    scale = np.sqrt(square / matrix.num_rows).astype(np.float32)
    return mean, np.where(scale > 1e-6 * np.abs(mean), scale, np.float32(1))
