"""Features of sentence pairs for sentence-pairs.yaml: each function returns one value per row of its batch."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute creates its functions at import.

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_COLUMNS = ("premise", "hypothesis")
_NEGATION = r"\b(not|no|never|nothing|nobody|none|n't)\b|n't\b"


def overlap(rows: pa.RecordBatch) -> list[float]:
    """Shared words divided by all words of the pair (Jaccard); 1 for two empty texts."""
    words = ([set(text.split()) for text in pc.utf8_lower(rows[name]).to_pylist()] for name in _COLUMNS)
    return [len(a & b) / len(a | b) if a | b else 1.0 for a, b in zip(*words, strict=True)]


def length_ratio(rows: pa.RecordBatch) -> pa.Array:
    """Characters of the premise divided by those of the hypothesis; null if the hypothesis is empty."""
    premise, hypothesis = (pc.cast(pc.utf8_length(rows[name]), pa.float32()) for name in _COLUMNS)
    return pc.divide(premise, pc.if_else(pc.equal(hypothesis, 0), None, hypothesis))


def negations(rows: pa.RecordBatch) -> np.ndarray:
    """(R, 2) numbers of negation words in the premise and in the hypothesis."""
    counts = [pc.count_substring_regex(rows[name], _NEGATION, ignore_case=True) for name in _COLUMNS]
    return np.stack([count.to_numpy(zero_copy_only=False) for count in counts], axis=1)
