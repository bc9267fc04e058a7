"""Weights of linear layers in the panel format that the compiled code reads.

Knows nothing of models. Invariants: weights are in memory once, since the pages of the checkpoint's file are released
as soon as a weight is copied; the weights of one layer of a model are adjacent, and are freed with it.
"""

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from varve.encoder.kernels.cpu_library import CpuLibrary, Weights


class WeightArena:
    """Memory for the weights of one layer of a model, on huge pages where the system has them.

    The weights are read once per block of rows. On pages of 4 kB that needs more addresses than a core's TLB holds: 104
    instead of 110 GFLOP/s at the width of bert-base (infra/decisions/0016).
    """

    def __init__(self, weights: int, files: Sequence[range], dtype: torch.dtype = torch.float32) -> None:
        """Reserve address space; memory is used as weights are written.

        Args:
            weights: capacity.
            files: result of `mapped_files`.
            dtype: of the weights.
        """
        memory = mmap.mmap(-1, max(weights, 1) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._free, self._files = torch.frombuffer(memory, dtype=dtype), files

    def move(self, weight: Tensor, panels: Tensor) -> Tensor:
        """Copy `panels`, a view of `weight`, into the arena, rounded to its dtype. `weight` must not be read later."""
        target, self._free = self._free[: weight.numel()], self._free[weight.numel() :]
        copy = target.view(panels.shape).copy_(panels)
        _release_pages(weight, self._files)
        return copy


class PackedWeights(nn.Module):
    """A linear layer's weight in panels, and its bias."""

    def __init__(self, linear: nn.Linear, library: CpuLibrary, arena: WeightArena, *, depth: int | None = None) -> None:
        """Copy the weight into panels.

        Args:
            linear: a layer that satisfies `can_pack_weights`. It must not be used afterwards.
            library: the library that reads the panels.
            arena: memory for the panels.
            depth: inputs per panel, a divisor of all inputs; all inputs when None.
        """
        super().__init__()
        self.library, self.in_features, self.out_features = library, linear.in_features, linear.out_features
        self.depth = depth or linear.in_features
        self._store(linear.weight.detach(), arena)
        self.bias = linear.bias

    def repack(self, library: CpuLibrary, arena: WeightArena) -> None:
        """Store the weight for another library, in the dtype that it reads.

        Args:
            library: with panels that the weight fills.
            arena: memory for the panels, with the library's dtype.
        """
        weight = self.weight
        self.library = library
        self._store(weight, arena)

    def _store(self, weight: Tensor, arena: WeightArena) -> None:
        order, sizes = self._format
        self.panels = nn.Parameter(arena.move(weight, weight.view(sizes).permute(order)), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(out, in) as in `nn.Linear`, for code that reads it. Computed at each access."""
        order, _ = self._format
        inverse = [order.index(axis) for axis in range(len(order))]
        return self.panels.permute(inverse).reshape(self.out_features, self.in_features)

    @property
    def _format(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Permutation from the axes of a weight to those of its panels, and the sizes of the axes of the weight.

        Panels are ordered by depth, then by column. A panel is (depth, columns), or for AMX tiles (depth / 32, 2 tiles,
        16, 16 columns, 2 inputs).
        """
        panels, depths = self.out_features // self.library.panel_columns, self.in_features // self.depth
        if self.library.in_pairs:
            return (3, 0, 4, 1, 5, 2, 6), (panels, 2, 16, depths, self.depth // 32, 16, 2)
        return (2, 0, 3, 1), (panels, self.library.panel_columns, depths, self.depth)

    @property
    def weights(self) -> Weights:
        """Addresses and sizes for a call; valid while this module exists."""
        return self.output_range(0, self.out_features)

    def output_range(self, first: int, stop: int) -> Weights:
        """`weights` of the outputs from `first` to `stop`: whole panels, of a single depth."""
        panels = self.panels.data_ptr() + first * self.in_features * self.panels.itemsize
        bias = None if self.bias is None else self.bias.data_ptr() + first * self.bias.itemsize
        return Weights(panels, bias, self.in_features, stop - first, self.depth)


def can_pack_weights(module: object, library: CpuLibrary) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer whose weight fills whole panels."""
    if type(module) is not nn.Linear:
        return False
    return module.in_features % library.panel_columns == 0 and module.out_features % library.panel_columns == 0


def mapped_files() -> list[range]:
    """Address ranges of files that are mapped into this process; empty on systems without /proc."""
    maps = Path("/proc/self/maps")
    mapped = [line.split() for line in maps.read_text().splitlines()] if maps.exists() else []
    spans = [fields[0].split("-") for fields in mapped if len(fields) > 5 and fields[5].startswith("/")]
    return [range(int(first, 16), int(stop, 16)) for first, stop in spans]


def _release_pages(weight: Tensor, files: Sequence[range]) -> None:
    """Release the pages on which a weight is mapped from the checkpoint's file; they stay in the page cache.

    The file stays mapped for other weights, so the pages would count in addition to the packed copy. MADV_DONTNEED
    would zero anonymous memory: only pages that lie in a mapped file are released.
    """
    page = mmap.PAGESIZE
    first, stop = -(-weight.data_ptr() // page) * page, (weight.data_ptr() + weight.nbytes) // page * page
    if stop > first and any(first in file and stop - 1 in file for file in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), mmap.MADV_DONTNEED)
