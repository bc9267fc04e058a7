"""The faiss package: imported on first use, and run on one thread.

Invariant: the number of threads, which is a property of the process, is the same after `one_thread` as before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varve.errors import JobError, RunError, first_line
from varve.indexing.metric import Metric

_DAMAGED = (RuntimeError, MemoryError)  # of FAISS; a changed length may be larger than the memory


def load_faiss() -> Any:
    """The module.

    Raises:
        JobError: it is not installed.
    """
    try:
        import faiss  # noqa: PLC0415
    except ImportError as e:
        msg = f"the target faiss needs the package faiss-cpu ({first_line(e)}): run pip install '.[faiss]' in Varve's "
        raise JobError(msg + "folder") from e
    return faiss


@contextmanager
def one_thread() -> Iterator[Any]:
    """The module, on one thread: results do not depend on the number of cores."""
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(threads)


def metric_type(metric: Metric) -> int:
    """The constant of FAISS for vectors that `Metric.prepare` returned."""
    faiss = load_faiss()
    return faiss.METRIC_L2 if metric.name == "euclidean" else faiss.METRIC_INNER_PRODUCT


def decode_index(content: bytes, where: str) -> Any:
    """The index of a serialized one.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return load_faiss().deserialize_index(np.frombuffer(content, np.uint8))
    except _DAMAGED as e:
        raise _damaged(where, e) from e


def map_index(path: Path, *, lists: bool) -> Any:
    """The index of a file, mapped into memory.

    Args:
        path: of the file.
        lists: whether it has inverted lists.

    Raises:
        RunError: it cannot be read.
    """
    faiss = load_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC)
    except _DAMAGED as e:
        raise _damaged(str(path), e) from e


def _damaged(where: str, error: Exception) -> RunError:
    return RunError(f"{where} is not an index that FAISS can read: {first_line(error)}. Build the index again")


def contiguous(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array as faiss reads it."""
    return np.ascontiguousarray(vectors, np.float32)
