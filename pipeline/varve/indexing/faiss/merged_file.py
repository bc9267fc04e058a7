"""Writes index files of FAISS from coded parts, in bounded memory.

The file is what `faiss.write_index` writes of an index to which all vectors were added at once. Its header is that of
the trained index with the number of vectors; the codes, which come last, are copied from the parts.

Knows nothing of folders and stores. Invariants: the bytes are a function of the trained index and the parts; at most
one inverted list, or a block of small ones, is in memory.
"""

import shutil
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from varve.indexing.faiss.coded_part import Run
from varve.indexing.faiss.faiss_library import load_faiss

BLOCK_BYTES = 2**23  # of codes that are sorted by list at once
_COPY_BYTES = 2**23
MAX_RUNS = 512  # merged at once: each of them is an open file
_LISTS_FOURCC = b"ilar"


def write_flat(index: Any, parts: Sequence[Path], num_vectors: int, path: Path) -> None:
    """Write a flat index.

    Args:
        index: trained, without vectors; it is changed.
        parts: files of codes in the order of the positions.
        num_vectors: in all of them.
        path: of the file to write.
    """
    index.ntotal = num_vectors
    header = load_faiss().serialize_index(index).tobytes()
    # The length of the codes is counted in elements: floats, or bytes of a scalar quantizer.
    per_vector = index.d if hasattr(index, "get_xb") else index.code_size
    with path.open("wb") as file:
        file.write(header[:-8] + struct.pack("<Q", num_vectors * per_vector))
        append_files(file, parts)


def append_files(file: BinaryIO, paths: Sequence[Path]) -> None:
    """Copy files to the end of another one."""
    for each in paths:
        with each.open("rb") as source:
            shutil.copyfileobj(source, file, _COPY_BYTES)


def write_lists(
    index: Any,
    runs: Sequence[tuple[Path, int]],
    path: Path,
    *,
    max_runs: int = MAX_RUNS,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write an index with inverted lists. Many runs are merged in several passes, in files next to `path`.

    Args:
        index: trained, without vectors; it is changed.
        runs: (file of a run, number of its vectors), ascending by position; at least one.
        path: of the file to write.
        max_runs: that are merged at once, at least 2.
        block_bytes: size of the blocks that are read; a larger list is read whole.
    """
    shape = (load_faiss().extract_index_ivf(index).nlist, index.code_size)
    passes = 0
    while len(runs) > max_runs:
        groups = [runs[at : at + max_runs] for at in range(0, len(runs), max_runs)]
        paths = [path.with_name(f"{path.name}.{passes}.{group}") for group in range(len(groups))]
        runs = [_merge_runs(group, shape, to, block_bytes) for group, to in zip(groups, paths, strict=True)]
        passes += 1
    mapped = [Run.map(file, num_vectors, index.code_size) for file, num_vectors in runs]
    sizes = _list_sizes(mapped, shape[0])
    with path.open("wb") as file:
        file.write(_lists_header(index, sizes))
        for block in _blocks(mapped, sizes, block_bytes):
            _write_block(file, block)


def _merge_runs(
    runs: Sequence[tuple[Path, int]], shape: tuple[int, int], path: Path, block_bytes: int
) -> tuple[Path, int]:
    """Write one run that holds the vectors of several; returns its file and their number.

    `shape`: number of lists, and bytes of a code.
    """
    mapped = [Run.map(file, num_vectors, shape[1]) for file, num_vectors in runs]
    merged = Run.map(path, sum(len(run) for run in mapped), shape[1], "w+")
    at = 0
    for block in _blocks(mapped, _list_sizes(mapped, shape[0]), block_bytes):
        here = slice(at, at + len(block))
        merged.ids[here], merged.lists[here], merged.codes[here] = block.ids, block.lists, block.codes
        at += len(block)
    return path, len(merged)


def _list_sizes(runs: Sequence[Run], num_lists: int) -> NDArray[np.int64]:
    sizes = np.zeros(num_lists, np.int64)
    for run in runs:
        for at in range(0, len(run), 2**20):
            sizes += np.bincount(run.lists[at : at + 2**20], minlength=num_lists)
    return sizes


def _lists_header(index: Any, sizes: NDArray[np.int64]) -> bytes:
    """All bytes before the first list."""
    faiss = load_faiss()
    inverted = faiss.extract_index_ivf(index)
    index.ntotal = inverted.ntotal = int(sizes.sum())
    content = faiss.serialize_index(index).tobytes()
    before = content[: content.rindex(_LISTS_FOURCC)]  # the empty lists are the last object
    num_lists = len(sizes)
    if np.count_nonzero(sizes) > num_lists // 2:
        kind, listed = b"full", sizes
    else:  # as FAISS writes lists of which most are empty: pairs of number and size
        filled = np.flatnonzero(sizes)
        kind, listed = b"sprs", np.stack([filled, sizes[filled]], axis=1).ravel()
    shape = struct.pack("<QQ", num_lists, inverted.code_size)
    return before + _LISTS_FOURCC + shape + kind + struct.pack("<Q", len(listed)) + listed.astype("<u8").tobytes()


def _blocks(runs: Sequence[Run], sizes: NDArray[np.int64], block_bytes: int) -> Iterator[Run]:
    """The vectors of all runs, list after list; each block holds whole lists."""
    ends = np.cumsum(sizes)
    per_block = block_bytes // runs[0].codes.shape[1]
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + per_block, side="right")))
        if ends[last - 1] > before:
            yield _gather(runs, first, last, int(ends[last - 1]) - before)
        first = last


def _gather(runs: Sequence[Run], first: int, last: int, num_vectors: int) -> Run:
    """The vectors of the lists [first, last), sorted by list; those of one list keep the order of the runs."""
    code_bytes = runs[0].codes.shape[1]
    ids, lists = np.empty(num_vectors, np.int64), np.empty(num_vectors, np.uint32)
    codes = np.empty((num_vectors, code_bytes), np.uint8)
    at = 0
    for run in runs:
        start, stop = np.searchsorted(run.lists, np.array([first, last], np.uint32))
        here = slice(at, at + int(stop - start))
        ids[here], lists[here], codes[here] = run.ids[start:stop], run.lists[start:stop], run.codes[start:stop]
        at = here.stop
    if last == first + 1:  # it may be large
        return Run(ids, lists, codes)
    order = np.argsort(lists, kind="stable")
    return Run(ids[order], lists[order], codes[order])


def _write_block(file: BinaryIO, block: Run) -> None:
    """Each list: its codes, then its ids."""
    ends = np.flatnonzero(np.diff(block.lists)) + 1
    for start, stop in pairwise([0, *ends.tolist(), len(block)]):
        file.write(block.codes[start:stop].data)
        file.write(block.ids[start:stop].data)
