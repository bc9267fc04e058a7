"""The rows that a map is fitted on: a random sample of the rows with a vector, all of them if there are few."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.errors import JobError
from varve.exploration.map.sample_search import SampleSearch, unit_length
from varve.indexing.source import IndexSource
from varve.output.run_output import Output
from varve.retrieval.row_numbers import locate


@dataclass(frozen=True, slots=True, eq=False)
class MapSample:
    """S rows of an output.

    Attributes:
        numbers: (S,) int64, ascending: their numbers over the whole output, in the manifest's order of parts.
        search: in their vectors, of unit length.
    """

    numbers: NDArray[np.int64]
    search: SampleSearch

    @classmethod
    def read(cls, output: Output, feature: str, num_rows: int, seed: int) -> "MapSample":
        """Read the sample, a function of the output, the size and the seed.

        Raises:
            JobError: no row has a vector.
            RunError: a part is missing or damaged.
        """
        source = IndexSource.open(output, feature)
        if not source.num_vectors:
            msg = f"{output.path}: no row has a vector of {feature}"
            raise JobError(msg)
        positions = np.arange(source.num_vectors)
        if source.num_vectors > num_rows:
            chosen = np.random.default_rng(seed).choice(source.num_vectors, num_rows, replace=False, shuffle=False)
            positions = np.sort(chosen)
        vectors = unit_length(source.dense_at(positions))
        return cls(locate(source, positions).numbers, SampleSearch.of(vectors))

    def row_of(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(row of the sample, whether it is in the sample) of rows of the output."""
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return at, self.numbers[at] == numbers
