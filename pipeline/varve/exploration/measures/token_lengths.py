"""Token counts, cut texts and errors of all rows, from the small columns of every part.

Knows nothing of vectors and texts. Invariant: memory is that of a batch of rows per thread, and of one number per
length.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.monitoring.row_errors import form_of
from varve.output.part_file import Part
from varve.output.run_output import Output

_THREADS = 8  # mostly wait for the store
_BATCH_ROWS = 65_536
_MAX_LENGTH = 1 << 20  # longer texts are counted as ones of this length
_MAX_GROUPS = 100  # reasons that are kept while parts are read
_EXAMPLES = 3
_BINS = 48

RowId = tuple[int, int]  # shard, row


@dataclass(slots=True)
class RowCounts:
    """Counts of some rows.

    Attributes:
        lengths: (L,) rows with each number of tokens, from 0 on.
        num_truncated: rows that were cut.
        reasons: form of a reason (see `row_errors.form_of`) → rows without features.
        examples: form of a reason → the first rows, at most three.
    """

    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    num_truncated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[RowId]] = field(default_factory=dict)

    def add_rows(self, table: pa.Table) -> None:
        """Add rows with the columns num_tokens, truncated, error, shard and row."""
        tokens = table["num_tokens"].drop_null().to_numpy().clip(0, _MAX_LENGTH)
        self._add_lengths(np.bincount(tokens))
        self.num_truncated += int(table["truncated"].drop_null().to_numpy().sum())
        if table["error"].null_count < len(table):
            self._add_errors(table.filter(table["error"].is_valid()))

    def _add_errors(self, failed: pa.Table) -> None:
        """Count the reasons; Python objects exist for distinct ones only."""
        encoded = failed["error"].combine_chunks().dictionary_encode()
        codes, firsts, counts = np.unique(encoded.indices.to_numpy(), return_index=True, return_counts=True)
        for code in np.argsort(firsts):
            form = form_of(encoded.dictionary[int(codes[code])].as_py())
            self.reasons[form] += int(counts[code])
            examples = self.examples.setdefault(form, [])
            if len(examples) < _EXAMPLES:
                examples += _row_ids(failed, np.flatnonzero(encoded.indices.to_numpy() == codes[code]))
                del examples[_EXAMPLES:]

    def merge(self, other: "RowCounts") -> None:
        """Add the counts of later rows; of very many reasons, only the most frequent are kept."""
        self._add_lengths(other.lengths)
        self.num_truncated += other.num_truncated
        self.reasons.update(other.reasons)
        for form, examples in other.examples.items():
            self.examples[form] = [*self.examples.get(form, ()), *examples][:_EXAMPLES]
        self.reasons = Counter(dict(self.reasons.most_common(_MAX_GROUPS)))
        self.examples = {form: self.examples[form] for form in self.reasons}

    def _add_lengths(self, lengths: NDArray) -> None:
        longer, shorter = (lengths, self.lengths) if len(lengths) > len(self.lengths) else (self.lengths, lengths)
        self.lengths = longer.astype(np.int64)
        self.lengths[: len(shorter)] += shorter

    def histogram(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """(edges, counts) of the lengths in at most 48 bins of equal width, a whole number of tokens.

        Bin i holds the lengths from edge i up to, but not including, edge i + 1.
        """
        used = np.flatnonzero(self.lengths)
        if not len(used):
            return (0.0, 1.0), (0,)
        low, high = int(used[0]), int(used[-1]) + 1
        width = -(-(high - low) // _BINS)
        edges = np.arange(low, high + width, width)
        padded = np.zeros(int(edges[-1]), np.int64)
        padded[:high] = self.lengths[:high]
        counts = np.add.reduceat(padded, edges[:-1])
        return tuple(map(float, edges)), tuple(map(int, counts))


def _row_ids(table: pa.Table, rows: NDArray[np.int64]) -> list[RowId]:
    shown = table.select(["shard", "row"]).take(pa.array(rows[:_EXAMPLES]))
    return list(zip(shown["shard"].to_pylist(), shown["row"].to_pylist(), strict=True))


def count_rows(output: Output) -> RowCounts:
    """Read the small columns of all parts.

    Raises:
        RunError: a part is missing or damaged.
    """
    total = RowCounts()
    for counts in _counts(output):
        total.merge(counts)
    return total


def _counts(output: Output) -> Iterable[RowCounts]:
    """The counts of the parts, in their order."""

    def count(part: Part) -> RowCounts:
        counts = RowCounts()
        for table in output.batches(part, ["num_tokens", "truncated", "error", "shard", "row"], _BATCH_ROWS):
            counts.add_rows(table)
        return counts

    with ThreadPoolExecutor(_THREADS) as threads:
        parts = output.manifest.parts
        for start in range(0, len(parts), 4096):  # futures of all parts at once would need much memory
            yield from threads.map(count, parts[start : start + 4096])
