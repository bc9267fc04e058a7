"""The codes of one part of the output: what is staged of a part before the index is merged.

A part of an index with inverted lists is a run: its vectors sorted by list, then by position.

    ids     (N,) int64     positions
    lists   (N,) uint32    ascending
    codes   (N, code_bytes) uint8

A part of a flat index has the codes only, in the order of the positions. Knows nothing of folders and stores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError
from varve.indexing.faiss.faiss_kind import FaissKind
from varve.indexing.faiss.faiss_library import contiguous, one_thread

_ENTRY_BYTES = 12  # id and list


def encode_part(kind: FaissKind, index: Any, vectors: NDArray[np.float32], first: int) -> bytes:
    """The content of a staged part.

    Args:
        kind: flat, or with inverted lists.
        index: trained, without vectors; it is not changed.
        vectors: (N, width), prepared; N is not 0.
        first: position of the first vector.

    Raises:
        RunError: a vector has a value that is not finite.
    """
    vectors = contiguous(vectors)
    with one_thread() as faiss:
        if kind.family == "flat":
            return index.sa_encode(vectors).tobytes()
        inverted = faiss.extract_index_ivf(index)
        lists = inverted.quantizer.assign(vectors, 1).ravel()
        if lists.min() < 0:
            position = first + int(np.flatnonzero(lists < 0)[0])
            msg = f"the vector of position {position} has values that are not finite: it has no place in {kind.name}"
            raise RunError(msg)
        codes = np.empty((len(vectors), inverted.code_size), np.uint8)
        pointers = [faiss.swig_ptr(array) for array in (vectors, lists, codes)]
        inverted.encode_vectors(len(vectors), *pointers)
    order = np.argsort(lists, kind="stable")
    ids = (first + order).astype(np.int64)
    return b"".join([ids.tobytes(), lists[order].astype(np.uint32).tobytes(), codes[order].tobytes()])


@dataclass(frozen=True, slots=True)
class Run:
    """Vectors of an index with inverted lists, sorted by list and position, mapped from a file."""

    ids: NDArray[np.int64]
    lists: NDArray[np.uint32]
    codes: NDArray[np.uint8]

    @classmethod
    def map(cls, path: Path, num_vectors: int, code_bytes: int, mode: Literal["r", "w+"] = "r") -> Self:
        """Map a file.

        Args:
            path: of the file.
            num_vectors: that it holds; not 0.
            code_bytes: of one vector.
            mode: r, or w+ to create it.

        Raises:
            RunError: it has another size.
        """
        expected = num_vectors * (_ENTRY_BYTES + code_bytes)
        if mode == "r":
            check_size(path, expected)
        content = np.memmap(path, np.uint8, mode, shape=(expected,))
        ids, lists, codes = np.split(content, [8 * num_vectors, _ENTRY_BYTES * num_vectors])
        return cls(ids.view(np.int64), lists.view(np.uint32), codes.reshape(num_vectors, code_bytes))

    def __len__(self) -> int:
        return len(self.ids)


def check_size(path: Path, expected: int) -> None:
    """Refuse a staged file of another size.

    Raises:
        RunError: with both sizes.
    """
    if (found := path.stat().st_size) != expected:
        msg = f"{path} has {found:,} bytes, expected {expected:,}: delete the folder of the index and build it again"
        raise RunError(msg)
