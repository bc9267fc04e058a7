"""The layout of array files: names, headers, rows per file, and the bytes of rows.

Knows nothing of stores and outputs. Two layouts:

- npy: `vectors-00000.npy`, `vectors-00001.npy`, ... in NumPy's format, with a fixed number of rows each; the last file
  has fewer.
- fbin: `vectors.fbin`, or `vectors.u8bin` for binary vectors: the number of rows and the values of a row (uint32), then
  the rows.

Rows are little-endian and in the order of their positions. Binary vectors keep one bit per dimension, the first in the
highest bit; int8 vectors are stored as float32, multiplied by their scales, because neither layout has scales.
Invariant: the bytes of a file are a function of the vectors.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varve.errors import RunError

MAX_FBIN_ROWS = 2**32 - 1
_FBIN_HEADER = struct.Struct("<II")
_DTYPES = {"binary": "u1", "float16": "<f2"}  # others: float32


@dataclass(frozen=True, slots=True)
class ArrayFormat:
    """How N vectors are stored.

    Attributes:
        layout: npy or fbin.
        dtype: of the stored values.
        width: dimensions of a vector.
        num_vectors: N.
        rows_per_file: of every file but the last.
    """

    layout: Literal["npy", "fbin"]
    dtype: np.dtype
    width: int
    num_vectors: int
    rows_per_file: int

    @classmethod
    def choose(
        cls, layout: Literal["npy", "fbin"], dtype: str, width: int, num_vectors: int, max_file_bytes: int
    ) -> "ArrayFormat":
        """The format of a feature.

        Args:
            layout: npy or fbin.
            dtype: of the feature: float32, float16, int8 or binary.
            width: dimensions of a vector.
            num_vectors: number of positions.
            max_file_bytes: of an npy file, with its header.
        """
        stored = np.dtype(_DTYPES.get(dtype, "<f4") if layout == "npy" or dtype == "binary" else "<f4")
        single = cls(layout, stored, width, num_vectors, max(num_vectors, 1))
        if layout == "fbin":
            return single
        rows = max(1, (max_file_bytes - len(single.header(0))) // single.row_bytes)
        return cls(layout, stored, width, num_vectors, rows)

    @property
    def values_per_row(self) -> int:
        """Stored values of one vector: its dimensions, or bytes of 8 dimensions each."""
        return -(-self.width // 8) if self.is_binary else self.width

    @property
    def is_binary(self) -> bool:
        """Whether each dimension is one bit."""
        return self.dtype == np.uint8

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.values_per_row * self.dtype.itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files, in the order of their rows."""
        if self.layout == "fbin":
            return ("vectors.u8bin" if self.is_binary else "vectors.fbin",)
        return tuple(f"vectors-{file:05d}.npy" for file in range(-(-self.num_vectors // self.rows_per_file)))

    def positions(self, file: int) -> range:
        """Positions whose vectors are in a file."""
        start = file * self.rows_per_file
        return range(start, min(start + self.rows_per_file, self.num_vectors))

    def file_bytes(self, file: int) -> int:
        """Size of a file."""
        return len(self.header(file)) + len(self.positions(file)) * self.row_bytes

    def header(self, file: int) -> bytes:
        """The bytes before the first row of a file."""
        shape = (len(self.positions(file)), self.values_per_row)
        if self.layout == "fbin":
            return _FBIN_HEADER.pack(*shape)
        content = io.BytesIO()
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(content, description)
        return content.getvalue()

    def encode(self, vectors: NDArray[np.float32]) -> NDArray:
        """(N, width) vectors as (N, values_per_row) stored values."""
        if self.is_binary:
            return np.packbits(vectors > 0, axis=1)
        return np.ascontiguousarray(vectors, dtype=self.dtype)

    def decode(self, stored: NDArray) -> NDArray[np.float32]:
        """(N, values_per_row) stored values as (N, width) float32; no copy if they are float32."""
        if self.is_binary:
            return np.unpackbits(stored, axis=1, count=self.width).astype(np.float32) * 2 - 1
        return np.asarray(stored).astype(np.float32, copy=False)

    def map_file(self, file: int, path: Path) -> NDArray:
        """(N, values_per_row) stored values of a file, mapped into memory.

        Raises:
            RunError: it does not have the size and the header of this format.
        """
        header = self.header(file)
        with path.open("rb") as opened:
            found = opened.read(len(header))
        if found != header or path.stat().st_size != self.file_bytes(file):
            expected = f"{self.file_bytes(file):,} bytes and the header of {len(self.positions(file)):,} vectors"
            msg = f"{path} is damaged: expected {expected} of {self.values_per_row} x {self.dtype.name}"
            raise RunError(msg)
        shape = (len(self.positions(file)), self.values_per_row)
        return np.memmap(path, self.dtype, mode="r", offset=len(header), shape=shape)
