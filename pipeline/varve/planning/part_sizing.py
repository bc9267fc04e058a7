"""Estimates tokens and bytes per row, and from them the number of rows per part.

Knows nothing of jobs or stores. A part is sized by the larger of its input and its output, because both are in memory.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import pyarrow as pa

from varve.config.model import Model, Windows
from varve.encoder.feature_plan import Column, FeaturePlan
from varve.output.schema import vector_length
from varve.preprocessing.text_blocks import tokenize_block
from varve.preprocessing.tokenizer import Tokenizer

PART_BYTES = 64 * 1024 * 1024
LARGEST_PART_BYTES = 8 * PART_BYTES
MANY_PARTS = 100_000
MAX_ROWS_PER_PART = 65_536
_MAX_CHARACTERS = 16_384  # tokenized of a text that is cut into windows: it may be a book
# Entries of a sparse vector: SPLADE models give some 85 of a sentence and 250 of an abstract. The number depends on the
# model, which has not run when parts are sized.
_SPARSE_ENTRIES = 250
_ENTRY_BYTES = 4 + 4  # an id and a weight
_TOKEN_BYTES = 4 + 2 * 4  # the id and the characters of a late-interaction token
_SPAN_BYTES = 2 * 4
_VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1, "binary": 1}


def row_bytes(plan: FeaturePlan, tokens_per_row: float, chunks_per_row: float = 1.0) -> dict[str, float]:
    """Feature column → bytes of one row, before compression.

    Args:
        plan: the feature columns.
        tokens_per_row: of all windows of a text.
        chunks_per_row: vectors of a column of chunks, see `chunks_per_row`.
    """
    limits = {name: head.max_active_dims or _SPARSE_ENTRIES for name, head in plan.heads.items()}
    return {
        column.name: _ENTRY_BYTES * min(limits.get(column.name, _SPARSE_ENTRIES), _SPARSE_ENTRIES)
        if column.form == "sparse"
        else _column_bytes(column, tokens_per_row, chunks_per_row)
        for column in plan.columns
    }


def _column_bytes(column: Column, tokens: float, chunks: float) -> float:
    vector = vector_length(column) * _VALUE_BYTES[column.dtype] + (4 if column.scale_name else 0)
    match column.form:
        case "tokens":
            return tokens * vector
        case "late":
            return tokens * (vector + _TOKEN_BYTES)
        case "clusters":  # the replica passes on one vector per token, which are pooled before they are written
            return tokens * vector
        case "chunks":
            return chunks * (vector + _SPAN_BYTES)
        case "attentions":
            return tokens * tokens * vector
        case _:
            return vector


def chunks_per_row(model: Model, tokens: float) -> float:
    """Estimated number of chunks of a text of so many tokens; 1 without chunks. Whole sentences fill chunks to 3/4."""
    chunks = model.long_text.chunk if isinstance(model.long_text, Windows) else None
    if chunks is None:
        return 1.0
    step = chunks.tokens - chunks.overlap if chunks.by == "tokens" else 0.75 * chunks.tokens
    return max(1.0, tokens / step)


def tokens_per_row(sample: pa.Table, text_columns: Sequence[str], tokenizer: Tokenizer) -> float:
    """Mean number of tokens per row, of all its windows. Rows that cannot be tokenized are skipped; 1 if all are.

    Texts that are cut into windows are tokenized up to `_MAX_CHARACTERS` and extrapolated.

    Args:
        sample: rows of the source.
        text_columns: one, or two for sentence pairs.
        tokenizer: of the model.
    """
    columns = [column.cast(pa.large_binary()) for column in sample.select(list(text_columns)).drop_null().columns]
    # Python strings are slow, but tokenizers accepts nothing else and this is only a sample.
    texts = [[text.decode(errors="replace") for text in column.to_pylist()] for column in columns]
    share_tokenized = 1.0
    if tokenizer.cuts_windows:
        num_characters = sum(map(len, chain(*texts)))
        texts = [[text[:_MAX_CHARACTERS] for text in column] for column in texts]
        share_tokenized = sum(map(len, chain(*texts))) / max(1, num_characters) or 1.0
    table = pa.table([pa.array(column, pa.large_string()) for column in texts], list(text_columns))
    counts = tokenize_block(tokenizer, table, text_columns).tokens.num_tokens
    return float(counts.mean()) / share_tokenized if len(counts) else 1.0


def rows_per_part(
    sample: pa.Table,
    tokens: float,
    features: FeaturePlan,
    computed_bytes: Mapping[str, float],
    num_rows: int,
    block_rows: int,
    chunks: float = 1.0,
) -> int:
    """Rows of a part of `part_bytes` bytes: a multiple of `block_rows`, or less than one block if its rows are large.

    Args:
        sample: first rows of the source.
        tokens: per row.
        features: the feature columns.
        computed_bytes: computed column → bytes of a row.
        num_rows: of the source; 0 if not known.
        block_rows: rows of a block.
        chunks: per row, see `chunks_per_row`.
    """
    if not len(sample):
        return block_rows
    written = sum(row_bytes(features, tokens, chunks).values())
    row_size = max(written + sum(computed_bytes.values()), sample.nbytes / len(sample))
    size = part_bytes(row_size * num_rows)
    rows = int(min(size / row_size, MAX_ROWS_PER_PART * size / PART_BYTES))
    return max(rows, 1) if rows < block_rows else rows // block_rows * block_rows


def part_bytes(output_bytes: float) -> float:
    """Size of a part: `PART_BYTES`, or more to limit a run to `MANY_PARTS` parts, each of which costs driver time.

    Args:
        output_bytes: of the whole output; 0 if not known.
    """
    return min(max(PART_BYTES, output_bytes / MANY_PARTS), LARGEST_PART_BYTES)
