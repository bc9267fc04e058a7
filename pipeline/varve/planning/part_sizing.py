"""How many tokens and bytes a row takes, and so how many rows make a part.

Knows nothing of jobs or stores. Both what is read and what is written count: a part is held in memory once.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import pyarrow as pa

from varve.encoder.feature_plan import Column, FeaturePlan
from varve.output.schema import vector_length
from varve.preprocessing.text_blocks import tokenize_block
from varve.preprocessing.tokenizer import Tokenizer

PART_BYTES = 64 * 1024 * 1024
LARGEST_PART_BYTES = 8 * PART_BYTES
MANY_PARTS = 100_000
MAX_ROWS_PER_PART = 65_536
# Read of a text that is cut into windows: it may be a book.
_BEGINNING_CHARACTERS = 16_384
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


def tokens_per_row(sample: pa.Table, text_columns: Sequence[str], tokenizer: Tokenizer) -> float:
    """Mean tokens of a row over its windows, of those that can be tokenized; 1 where there are none.

    Of long texts that are cut into windows the rest counts as the beginning.

    Args:
        sample: rows of the source.
        text_columns: one, or two for sentence pairs.
        tokenizer: of the model.
    """
    columns = [column.cast(pa.large_binary()) for column in sample.select(list(text_columns)).drop_null().columns]
    # A sample, not the hot path: tokenizers takes Python strings only.
    texts = [[text.decode(errors="replace") for text in column.to_pylist()] for column in columns]
    read, share = texts, 1.0
    if tokenizer.cuts_windows:
        read = [[text[:_BEGINNING_CHARACTERS] for text in column] for column in texts]
        share = sum(map(len, chain(*read))) / max(1, sum(map(len, chain(*texts)))) or 1.0
    beginnings = pa.table([pa.array(column, pa.large_string()) for column in read], list(text_columns))
    counts = tokenize_block(tokenizer, beginnings, text_columns).tokens.num_tokens
    return float(counts.mean()) / share if len(counts) else 1.0


def rows_per_part(
    sample: pa.Table,
    tokens: float,
    features: FeaturePlan,
    computed_bytes: Mapping[str, float],
    whole_rows: int,
    block_rows: int,
) -> int:
    """Rows of a part of about `PART_BYTES`, or of more in a large run; whole blocks where a block fits.

    Args:
        sample: first rows of the source.
        tokens: of a row.
        features: what the encoder brings.
        computed_bytes: computed column → bytes of a row.
        whole_rows: of the source; 0 where it does not say how many.
        block_rows: of a block.
    """
    if not len(sample):
        return block_rows
    written = sum(row_bytes(features, tokens).values())
    each = max(written + sum(computed_bytes.values()), sample.nbytes / len(sample))
    size = part_bytes(each * whole_rows)
    rows = int(min(size / each, MAX_ROWS_PER_PART * size / PART_BYTES))
    return max(rows, 1) if rows < block_rows else rows // block_rows * block_rows


def part_bytes(whole_bytes: float) -> float:
    """The size of a part: of a run with more than `MANY_PARTS` they grow, since each costs the driver time and memory.

    Args:
        whole_bytes: of the whole output; 0 where the source does not say how many rows it has.
    """
    return min(max(PART_BYTES, whole_bytes / MANY_PARTS), LARGEST_PART_BYTES)
