"""Encodes a table of rows block by block: tokens → encoder → Arrow table of features.

Knows nothing of Ray, source files or part names. Invariants: rows out = rows in, in order; blocks are encoded
separately, so the same rows share packs in every run; a row that cannot be encoded has its reason in `error` and does
not affect other rows.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.encoder.encoder import Encoder
from varve.encoder.packing import Index
from varve.encoder.pending_call import PendingCall
from varve.encoder.ragged import Columns, Ragged
from varve.encoder.results import NOT_FINITE, Counts, find_non_finite
from varve.monitoring.block import Block
from varve.monitoring.row_errors import count_errors
from varve.output.schema import feature_arrays, row_arrays
from varve.output.valid_text import replace_invalid
from varve.preprocessing.computed_columns import mask_bad_rows
from varve.preprocessing.text_blocks import Tokenized

# Blocks that the encoder works on while the next one is prepared, so that it never waits at the end of a block.
_BLOCKS_AHEAD = 1

OnBlock = Callable[[Block], None]


def featurize(
    encoder: Encoder,
    table: pa.Table,
    blocks: Iterator[Tokenized],
    *,
    schema: pa.Schema,
    shard: int,
    start: int,
    pairs: bool,
    on_block: OnBlock = lambda _: None,
) -> tuple[pa.Table, dict[str, float], Counts]:
    """Encode a table of rows.

    Args:
        encoder: encodes the tokens.
        table: R rows with the kept columns.
        blocks: tokens of the rows, in order; the next block is requested while one is encoded.
        schema: of the result.
        shard: written to every row.
        start: number of the first row.
        pairs: texts are sentence pairs.
        on_block: called after each encoded block.

    Returns:
        (R rows of features; stage → seconds, for "encode" the sum over the encoder's lanes; events that the encoder
        counted).
    """
    queue = _BlockQueue(encoder, schema, shard, pairs=pairs, on_block=on_block)
    first = 0
    for block in blocks:
        rows = table.slice(first, len(block.reasons))
        seconds = {"tokenize": block.tokenize_s}
        if block.compute_s:
            seconds["compute"] = block.compute_s
        queue.push(_PendingBlock(rows, start + first, block, encoder.start(block.tokens), seconds))
        first += len(rows)
    return queue.finish()


@dataclass(frozen=True, slots=True)
class _PendingBlock:
    """A block that the encoder works on."""

    rows: pa.Table
    start: int
    block: Tokenized
    call: PendingCall
    seconds: dict[str, float]  # stage → seconds, before encoding


class _BlockQueue:
    """Blocks that are being encoded, and the features of completed ones."""

    def __init__(self, encoder: Encoder, schema: pa.Schema, shard: int, *, pairs: bool, on_block: OnBlock) -> None:
        self._encoder, self._schema, self._shard, self._pairs = encoder, schema, shard, pairs
        self._on_block = on_block
        self._pending: deque[_PendingBlock] = deque()
        self._features: list[pa.Table] = []
        self._counts, self._seconds = Counts(), Counter[str]()

    def push(self, pending: _PendingBlock) -> None:
        self._seconds.update(pending.seconds)
        self._pending.append(pending)
        if len(self._pending) > _BLOCKS_AHEAD:
            self._complete(self._pending.popleft())

    def finish(self) -> tuple[pa.Table, dict[str, float], Counts]:
        while self._pending:
            self._complete(self._pending.popleft())
        table = pa.concat_tables(self._features) if self._features else self._schema.empty_table()
        return table, {**self._seconds, "encode": self._counts.busy_s}, self._counts

    def _complete(self, pending: _PendingBlock) -> None:
        encoded = pending.call.result()
        self._counts += encoded.counts
        rows, block = pending.rows, pending.block
        columns = {
            **encoded.columns, "num_tokens": block.tokens.num_tokens, "truncated": block.tokens.truncated
        }  # fmt: skip
        columns = _drop_failed(columns, block, encoded.reasons)
        good, reasons = block.good, pa.array(block.reasons, pa.string())
        errors = count_errors(reasons)
        kept = replace_invalid(rows.select([name for name in self._schema.names if name in rows.column_names]))
        arrays = {
            **{name: kept[name].combine_chunks() for name in kept.column_names},
            **feature_arrays(self._encoder.feature_plan, columns, good, pairs=self._pairs),
            **{name: mask_bad_rows(values, good) for name, values in block.computed.items()},
            **row_arrays(columns, good, reasons, shard=self._shard, start=pending.start),
        }
        self._features.append(pa.table([arrays[name] for name in self._schema.names], schema=self._schema))
        self._on_block(
            Block(
                rows=len(rows),
                tokens=len(block.tokens.input_ids),
                errors=errors.failures,
                null_texts=errors.null_texts,
                reasons=errors.reasons,
                seconds={**pending.seconds, "encode": encoded.counts.busy_s},
                packs=encoded.counts.packs,
                packed_tokens=encoded.counts.packed_tokens,
            )
        )


def _drop_failed(columns: Columns, block: Tokenized, reasons: dict[int, str]) -> Columns:
    """Turn texts that the encoder failed on, or whose features overflow float16, into error rows."""
    finite = np.ones(len(columns["num_tokens"]), np.bool_)
    finite[list(reasons)] = False
    for values in columns.values():
        finite[_overflowed(values)] = False
    if finite.all():
        return columns
    rows = np.flatnonzero(block.good)
    for text in np.flatnonzero(~finite):
        block.reasons[rows[text]] = reasons.get(int(text), NOT_FINITE)
    return {name: _take(values, finite) for name, values in columns.items()}


def _overflowed(values: NDArray | Ragged) -> Index:
    """Texts with a value that float16 cannot hold."""
    flat = values.values if isinstance(values, Ragged) else values
    if flat.dtype != np.float16:
        return np.zeros(0, np.int64)
    found = find_non_finite(flat)
    return np.searchsorted(values.offsets, found, side="right") - 1 if isinstance(values, Ragged) else found


def _take(values: NDArray | Ragged, rows: NDArray[np.bool_]) -> NDArray | Ragged:
    if not isinstance(values, Ragged):
        return values[rows]
    lengths = np.diff(values.offsets)
    kept = np.repeat(rows, lengths)
    return Ragged(values.values[kept], np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[rows])]))
