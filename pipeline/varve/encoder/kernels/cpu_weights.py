"""The weights of a linear layer in the order in which compiled code reads them.

Knows nothing of models. Invariants: weights are held once: as soon as one is laid out, the pages of the checkpoint's
file that it was mapped from are let go; those of one layer of a model lie together, and are freed with it.
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

_FLOAT_BYTES = 4


class Room:
    """Memory for the weights of one layer of a model, on huge pages where the system has them.

    They are read from end to end for every block of rows, and on pages of 4 kB that is more addresses than a core has
    at hand: 104 instead of 110 GFLOP/s at the width of bert-base (infra/decisions/0016).
    """

    def __init__(self, floats: int, files: Sequence[range]) -> None:
        """Reserve it; it takes up memory as it is written.

        Args:
            floats: all that it is to hold.
            files: what `mapped_files` gave.
        """
        stretch = mmap.mmap(-1, max(floats, 1) * _FLOAT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):  # a system without huge pages
            stretch.madvise(mmap.MADV_HUGEPAGE)
        self._left, self._files = torch.frombuffer(stretch, dtype=torch.float32), files

    def move_in(self, weight: Tensor, laid_out: Tensor) -> Tensor:
        """A copy of a weight in this room; where it came from is no longer to be read.

        Args:
            weight: as the checkpoint has it.
            laid_out: a view of it in the order in which it is to lie.
        """
        place, self._left = self._left[: weight.numel()], self._left[weight.numel() :]
        copy = place.view(laid_out.shape).copy_(laid_out)
        _let_go_of_pages(weight, self._files)
        return copy


class PackedWeights(nn.Module):
    """A linear layer's weight in panels, and its bias."""

    def __init__(self, linear: nn.Linear, kernel: CpuLibrary, room: Room, *, depth: int | None = None) -> None:
        """Lay the weight out.

        Args:
            linear: that `fits` the kernel; it is no longer to be used.
            kernel: that will read it.
            room: where the weight is to lie.
            depth: inputs in a panel, which divide all inputs; all of them when None.
        """
        super().__init__()
        self.kernel, self.in_features, self.out_features = kernel, linear.in_features, linear.out_features
        self.depth = depth or linear.in_features
        order, parts = self._order
        panels = linear.weight.detach().view(parts).permute(order)
        self.laid_out = nn.Parameter(room.move_in(linear.weight, panels), requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """(out, in) as `nn.Linear` has it, for code that looks at it: made anew at each look."""
        order, _ = self._order
        back = [order.index(part) for part in range(len(order))]
        return self.laid_out.permute(back).reshape(self.out_features, self.in_features)

    @property
    def _order(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The order of the parts of a weight as it is laid out, depth by depth and panel by panel, and their sizes.

        A panel is (depth, columns), or with tiles (depth / 32, 2 tiles, 16, 16 columns, 2 inputs).
        """
        panels, depths = self.out_features // self.kernel.columns, self.in_features // self.depth
        if self.kernel.in_pairs:
            return (3, 0, 4, 1, 5, 2, 6), (panels, 2, 16, depths, self.depth // 32, 16, 2)
        return (2, 0, 3, 1), (panels, self.kernel.columns, depths, self.depth)

    @property
    def weights(self) -> Weights:
        """Where they lie, for a call that ends while this module lives."""
        return self.some(0, self.out_features)

    def some(self, first: int, stop: int) -> Weights:
        """The same of some outputs: whole panels of a single depth."""
        panels = self.laid_out.data_ptr() + first * self.in_features * _FLOAT_BYTES
        bias = None if self.bias is None else self.bias.data_ptr() + first * _FLOAT_BYTES
        return Weights(panels, bias, self.in_features, stop - first, self.depth)

    def extra_repr(self) -> str:
        """For printing, like `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, with={self.kernel.instructions}"


def fits(module: object, kernel: CpuLibrary) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer that can be laid out for the kernel."""
    if type(module) is not nn.Linear:
        return False
    return module.in_features % kernel.columns == 0 and module.out_features % kernel.columns == 0


def mapped_files() -> list[range]:
    """Addresses at which files are mapped into this process; none where the system does not tell."""
    maps = Path("/proc/self/maps")
    mapped = [line.split() for line in maps.read_text().splitlines()] if maps.exists() else []
    spans = [fields[0].split("-") for fields in mapped if len(fields) > 5 and fields[5].startswith("/")]
    return [range(int(first, 16), int(stop, 16)) for first, stop in spans]


def _let_go_of_pages(weight: Tensor, files: Sequence[range]) -> None:
    """Let the pages go on which a weight is mapped from the checkpoint's file, which stays mapped for other weights.

    Else they would count beside the laid-out copy. They stay in the system's cache, for the next process.
    """
    page = mmap.PAGESIZE
    first, stop = -(-weight.data_ptr() // page) * page, (weight.data_ptr() + weight.nbytes) // page * page
    if stop > first and any(first in file and stop - 1 in file for file in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), mmap.MADV_DONTNEED)
