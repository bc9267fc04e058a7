"""A feature of all rows as one array: in memory, or mapped from a file if it is large.

Knows nothing of models. Invariants: row r of the array is row r in the manifest's order of parts, and a row without a
vector is NaN; besides the array, memory is that of a batch of rows.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError, one_line
from varve.output.run_output import Output
from varve.output.vectors import read_vector_lists, read_vectors

MEMORY_BYTES = 2**30  # larger arrays are mapped from a file
_BATCH_BYTES = 2**23
_LISTS = ("windows", "chunks", "tokens", "late", "clusters")


def read_array(
    output: Output, feature: str, file: str | os.PathLike[str] | None = None
) -> NDArray[np.float32] | Ragged:
    """Decode a feature of all rows.

    Args:
        output: of a finished run.
        feature: name of the column.
        file: new `.npy` file that the array is written to and mapped from; None: memory, or from `MEMORY_BYTES` on a
            file in the folder for temporary files (TMPDIR), which has no name and vanishes with the array.

    Returns:
        Of a feature with one vector per row, (rows, width) float32: float16 and int8 values decoded, binary ones as -1
        and +1, NaN in rows without a vector. Of windows, chunks, tokens, late interaction and clusters, which are lists
        of vectors, a `Ragged` in memory: all vectors, and the offsets of the rows; a row without has none.

    Raises:
        JobError: there is no such feature, it is sparse or attentions, or the file exists or cannot be written.
        RunError: a part is missing or damaged, or there is no room for the file.
    """
    column = find_array_column(output, feature)
    if column.form in _LISTS:
        if file is not None:
            msg = f"{feature} holds lists of vectors ({column.form}), which have no .npy file. Remove `file`"
            raise JobError(msg)
        return _read_lists(output, column)
    shape = (output.manifest.num_rows, column.width)
    if file is not None:
        return _fill_file(output, column, shape, Path(file).absolute())
    vectors = _allocate(shape)
    _fill(output, column, vectors)
    return vectors


def find_array_column(output: Output, feature: str, forms: Sequence[str] = ("vector", *_LISTS)) -> Column:
    """The definition of a feature that can be an array.

    Raises:
        JobError: there is no such feature, or it has another form.
    """
    column = output.features.get(feature)
    possible = ", ".join(name for name, other in output.features.items() if other.form in forms)[:1000] or "none"
    if column is None:
        msg = f"{output.path} has no feature {feature!r:.200}; possible here: {possible}"
        raise JobError(msg)
    if column.form not in forms:
        msg = f"{feature} has {column.form} vectors. Features that are possible here: {possible}; to_arrow has all"
        raise JobError(msg)
    return column


def _fill(output: Output, column: Column, vectors: NDArray[np.float32]) -> None:
    at, batch_rows = 0, int(np.clip(_BATCH_BYTES // (4 * column.width), 64, 8192))
    for part in output.manifest.parts:
        for table in output.batches(part, column.stored_names, batch_rows):
            rows, filled = vectors[at : at + len(table)], table[column.name].is_valid().to_numpy()
            rows[~filled] = np.nan
            try:
                rows[filled] = read_vectors(table, column)
            except ValueError as e:
                msg = f"{output.path}/{part.name}: {column.name} cannot be decoded: {one_line(e)}. See `varve verify`"
                raise RunError(msg) from e
            at += len(table)


def _read_lists(output: Output, column: Column) -> Ragged:
    found = [read_vector_lists(table, column) for _, table in output.tables(column.stored_names)]
    lengths = np.concatenate([np.diff(each.offsets) for each in found])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Ragged(np.concatenate([each.values for each in found]), offsets)


def _allocate(shape: tuple[int, int]) -> NDArray[np.float32]:
    num_bytes = 4 * shape[0] * shape[1]
    if num_bytes <= MEMORY_BYTES:
        return np.empty(shape, np.float32)
    try:
        with TemporaryFile(prefix="varve-") as file:
            if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return np.memmap(file, np.float32, "w+", shape=shape)
    except OSError as e:
        msg = f"no room for {num_bytes:,} bytes of vectors: {e.strerror}. Set TMPDIR to a disk with more free space"
        raise RunError(msg) from e


def _fill_file(output: Output, column: Column, shape: tuple[int, int], path: Path) -> NDArray[np.float32]:
    """The array, mapped from a file that has its name only once it is complete."""
    if path.exists() or not path.parent.is_dir():
        msg = f"file: {path} {'exists already' if path.exists() else 'is not in an existing folder'}. Choose another"
        raise JobError(msg)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        vectors = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
        if hasattr(os, "posix_fallocate"):
            with partial.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        _fill(output, column, vectors)
        vectors.flush()
        partial.rename(path)
    except OSError as e:
        msg = f"file: {path} cannot be written: {e.strerror}"
        raise RunError(msg) from e
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")
