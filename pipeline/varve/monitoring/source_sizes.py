"""What is known of the rows and texts of a source before they are read, as terms of a forecast. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.ranges import Missing, Range

TREND_TERMS = 3  # rows, rows times the position in the shard, rows times that of the shard


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is missing of a source when a run starts.

    Attributes:
        rows: their number.
        terms: (3,) of all missing rows (`SourceSizes.terms`).
        other_terms: (3,) of those in shards that are not measured.
        measured_rows: number of rows in measured shards.
        measured_bytes: bytes of their texts.
    """

    rows: int
    terms: NDArray[np.float64]
    other_terms: NDArray[np.float64]
    measured_rows: int
    measured_bytes: int


@dataclass(frozen=True, slots=True)
class SourceSizes:
    """Sizes of the shards of a source.

    Attributes:
        rows: (S,) rows.
        text_bytes: (S,) bytes of the texts of each measured shard; 0 for shards whose bytes are not known, and for
            shards that a run reads only a part of, since the bytes of these rows are not known.
    """

    rows: NDArray[np.int64]
    text_bytes: NDArray[np.int64]

    @classmethod
    def of(
        cls, rows: tuple[int, ...], text_bytes: tuple[int, ...] | None, missing: Mapping[int, Missing]
    ) -> "SourceSizes":
        """From the rows of each shard, the bytes of its texts if they are known, and what is missing of each."""
        known = np.zeros(len(rows), np.int64) if text_bytes is None else np.array(text_bytes, np.int64)
        whole = [shard for shard, cells in missing.items() if cells.tail == 0 and not cells.end_known]
        kept = np.zeros_like(known)
        kept[whole] = known[whole]
        return cls(np.array(rows, np.int64), kept)

    def terms(self, shard: int, start: NDArray | int, stop: NDArray | int) -> NDArray[np.float64]:
        """The terms of the trend, summed over rows.

        Args:
            shard: whose rows.
            start: first row, or (N,) first rows of ranges.
            stop: row after the last one, or (N,) of each range.

        Returns:
            (3,), or (3, N).
        """
        counts = np.asarray(stop, float) - start
        place = (np.asarray(stop, float) + start) / (2.0 * max(int(self.rows[shard]), 1)) - 0.5
        return np.stack([counts, counts * place, counts * ((shard + 0.5) / len(self.rows) - 0.5)])

    def is_measured(self, part: Range) -> bool:
        """Whether the bytes of a part's shard are known."""
        return bool(self.text_bytes[part.shard])

    def remaining(self, missing: Mapping[int, Missing], rows_per_part: int) -> Remaining:
        """What is missing, in all."""
        terms, other = np.zeros(TREND_TERMS), np.zeros(TREND_TERMS)
        for shard, cells in missing.items():
            last = int(self.rows[shard])
            starts = np.fromiter(cells.starts, np.int64, len(cells.starts))
            added = self.terms(shard, starts, np.minimum(starts + rows_per_part, last)).sum(1)
            if not cells.end_known and cells.tail < last:
                added += self.terms(shard, cells.tail, last)
            terms += added
            if not self.text_bytes[shard]:
                other += added
        rows = round(terms[0])
        return Remaining(rows, terms, other, rows - round(other[0]), int(self.text_bytes.sum()))
