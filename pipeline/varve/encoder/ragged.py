"""Feature columns as arrays. Needs only numpy, so that code that stores columns does not import a model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list column: row r holds values[offsets[r]:offsets[r + 1]]."""

    values: NDArray
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Columns = dict[str, NDArray | Ragged]
