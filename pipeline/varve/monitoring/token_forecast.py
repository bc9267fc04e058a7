"""How many tokens a run has still to encode, from the blocks that it has encoded. Pure, and bounded in memory.

Texts may grow or shrink over the source, so the mean so far is wrong for the rest. Two models, both fitted to the
blocks: tokens follow the bytes of the texts, for shards whose bytes the source knows before they are read (Parquet's
footers); or tokens per row change linearly with the position in the shard and with that of the shard.
"""

from dataclasses import dataclass

import numpy as np

from varve.monitoring.block import Added, Block
from varve.monitoring.block_regression import BlockRegression, BlockSums
from varve.monitoring.source_sizes import TREND_TERMS, Remaining, SourceSizes
from varve.ranges import Range

_BYTE_TERMS = 2  # bytes, rows
# Tokenizers add two tokens to most texts.
_TOKENS_PER_ROW, _ROW_SPREAD = 2.0, 2.0
# Standard deviation of the trend's prior: the change from the first row to the last one, in means so far.
_PRIOR_CHANGE = 2.0
# The mean of the rows left is at least this share of the least mean of a block, and at most so many times the greatest.
_LEAST, _MOST = 0.4, 3.0
# Footers count a repeated text once: with more bytes read than the shards have, they say nothing.
_MOST_READ = 1.05


@dataclass(frozen=True, slots=True)
class EncodedSums:
    """Sums over the blocks of a run, each row once.

    Attributes:
        trend: for the linear trend.
        by_bytes: for tokens from bytes.
        rows: encoded.
        terms: (3,) of these rows, and `other_terms` of those in shards that are not measured.
        measured_rows: rows in measured shards, `measured_bytes` of their texts.
        begun_bytes: of the measured shards that have been begun.
        least: tokens per row of the block with the fewest.
        most: of that with the most.
    """

    trend: BlockSums
    by_bytes: BlockSums
    rows: int
    terms: tuple[float, ...]
    other_terms: tuple[float, ...]
    measured_rows: int
    measured_bytes: int
    begun_bytes: int
    least: float
    most: float


class EncodedBlocks:
    """Adds up the blocks of a run."""

    def __init__(self, sizes: SourceSizes) -> None:
        """Start without blocks."""
        self._sizes = sizes
        self._trend, self._by_bytes = BlockRegression(TREND_TERMS), BlockRegression(_BYTE_TERMS)
        self._terms, self._other_terms = np.zeros(TREND_TERMS), np.zeros(TREND_TERMS)
        self._rows, self._measured_rows, self._measured_bytes, self._begun_bytes = 0, 0, 0, 0
        self._begun: set[int] = set()
        self._least, self._most = float("inf"), 0.0

    def add(self, block: Block, added: Added, part: Range, row: int) -> None:
        """Add the new rows of a block of a part.

        Args:
            block: as it was reported.
            added: what of it counts for the first time.
            part: the rows of the part.
            row: first new row, in its shard.
        """
        if added.rows <= 0 or part.shard >= len(self._sizes.rows):
            return
        terms = self._sizes.terms(part.shard, row, row + added.rows)
        num_bytes = block.text_bytes * added.rows // block.rows
        self._trend.add(terms, added.rows, added.tokens)
        self._by_bytes.add(np.array([num_bytes, added.rows], float), added.rows, added.tokens)
        self._rows += added.rows
        self._terms += terms
        mean = added.tokens / added.rows
        self._least, self._most = min(self._least, mean), max(self._most, mean)
        if not self._sizes.is_measured(part):
            self._other_terms += terms
            return
        self._measured_rows += added.rows
        self._measured_bytes += num_bytes
        if part.shard not in self._begun:
            self._begun.add(part.shard)
            self._begun_bytes += int(self._sizes.text_bytes[part.shard])

    def sums(self) -> EncodedSums:
        """The present sums."""
        return EncodedSums(
            self._trend.sums(),
            self._by_bytes.sums(),
            self._rows,
            tuple(self._terms.tolist()),
            tuple(self._other_terms.tolist()),
            self._measured_rows,
            self._measured_bytes,
            self._begun_bytes,
            self._least,
            self._most,
        )


def tokens_left(remaining: Remaining, sums: EncodedSums) -> float:
    """Tokens of the rows that are missing and not encoded yet; there must be blocks.

    Args:
        remaining: what was missing when the run started.
        sums: what was encoded since.
    """
    has_bytes = remaining.measured_bytes and sums.by_bytes.products[0]
    is_measured = has_bytes and sums.measured_bytes <= _MOST_READ * sums.begun_bytes
    if is_measured:
        forecast = _by_bytes(remaining, sums) + _by_trend(remaining.other_terms - np.array(sums.other_terms), sums)
    else:
        forecast = _by_trend(remaining.terms - np.array(sums.terms), sums)
    rows_left = max(0, remaining.rows - sums.rows)
    least = 0.0 if is_measured else _LEAST * sums.least * rows_left
    return min(max(forecast, least), _MOST * sums.most * rows_left)


def _by_bytes(remaining: Remaining, sums: EncodedSums) -> float:
    """Tokens left in measured shards."""
    per_byte, per_row = sums.by_bytes.fit((0.0, _TOKENS_PER_ROW), (np.inf, _ROW_SPREAD))
    bytes_left = max(0, remaining.measured_bytes - sums.measured_bytes)
    return float(per_byte * bytes_left + per_row * max(0, remaining.measured_rows - sums.measured_rows))


def _by_trend(terms: np.ndarray, sums: EncodedSums) -> float:
    """Tokens of rows with these terms, (3,) in all."""
    mean = sums.trend.tokens / sums.trend.rows
    spreads = (np.inf, *[_PRIOR_CHANGE * mean + 1e-9] * (TREND_TERMS - 1))
    return float(terms @ sums.trend.fit((mean, 0.0, 0.0), spreads))
