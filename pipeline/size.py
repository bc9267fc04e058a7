"""How many bytes a row takes, and so how many rows make a part.

Knows nothing of jobs or stores. Both what is read and what is written count: a part is held in memory once.
"""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.columns import Column, FeaturePlan
from pipeline.schema import vector_length
from pipeline.tokenizer import Tokenizer

# Rows that are encoded together: enough to sort by length, few enough to be held with all their features.
BLOCK_ROWS = 1024
PART_BYTES = 64 * 1024 * 1024
LARGEST_PART_BYTES = 8 * PART_BYTES
MANY_PARTS = 100_000
MAX_ROWS_PER_PART = 64 * BLOCK_ROWS
_VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1, "binary": 1}


def row_bytes(plan: FeaturePlan, tokens_per_row: float) -> dict[str, float]:
    """Bytes of one row of each feature column, before compression."""
    return {column.name: _column_bytes(column, tokens_per_row) for column in plan.columns}


def _column_bytes(column: Column, tokens: float) -> float:
    vector = vector_length(column) * _VALUE_BYTES[column.dtype] + (4 if column.scale_name else 0)
    match column.form:
        case "tokens":
            return tokens * vector
        case "attentions":
            return tokens * tokens * vector
        case _:
            return vector


def rows_per_part(
    sample: pa.Table,
    text: str,
    tokenizer: Tokenizer,
    features: FeaturePlan,
    computed_bytes: Mapping[str, float],
    whole_rows: int,
) -> int:
    """Rows of a part of about `PART_BYTES`, or of more in a large run; whole blocks where a block fits.

    Args:
        sample: first rows of the source.
        text: its column of texts, of which the tokens are counted.
        tokenizer: of the model.
        features: what the encoder brings.
        computed_bytes: computed column → bytes of a row.
        whole_rows: of the source; 0 where it does not say how many.
    """
    if not len(sample):
        return BLOCK_ROWS
    written = sum(row_bytes(features, _tokens_per_row(sample[text], tokenizer)).values())
    each = max(written + sum(computed_bytes.values()), sample.nbytes / len(sample))
    size = part_bytes(each * whole_rows)
    rows = int(min(size / each, MAX_ROWS_PER_PART * size / PART_BYTES))
    return max(rows, 1) if rows < BLOCK_ROWS else rows // BLOCK_ROWS * BLOCK_ROWS


def _tokens_per_row(column: pa.ChunkedArray, tokenizer: Tokenizer) -> float:
    texts = column.cast(pa.large_binary()).drop_null()
    # A sample, not the hot path: tokenizers takes Python strings only.
    decoded = [text.decode(errors="replace") for text in texts.to_pylist()]
    return float(tokenizer(decoded).num_tokens.mean()) if decoded else 1.0


def part_bytes(whole_bytes: float) -> float:
    """The size of a part: of a run with more than `MANY_PARTS` they grow, since each costs the driver time and memory.

    Args:
        whole_bytes: of the whole output; 0 where the source does not say how many rows it has.
    """
    return min(max(PART_BYTES, whole_bytes / MANY_PARTS), LARGEST_PART_BYTES)
