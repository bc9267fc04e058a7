"""A table of texts → a table of features, block by block.

Where the stages of one worker meet: tokens, the encoder, features into Arrow. Knows nothing of Ray, shards' files or
parts' names. Invariants: rows in = rows out, in order; a block is encoded by itself, so a row has the same neighbours
in every run; a row that can't be encoded carries its reason and costs no other row.
"""

import time
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
from varve.monitoring.run_counters import Block
from varve.output.schema import feature_arrays, row_arrays
from varve.preprocessing.computed_columns import mask_bad_rows
from varve.preprocessing.text_blocks import Tokenized

# Blocks in the encoder's lanes beside the one that is being tokenized: no lane runs dry at a block's end.
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
        encoder: does the work.
        table: with the kept columns.
        blocks: the tokens of its rows, block by block; the next is asked for while one is encoded.
        schema: of the result.
        shard: written into every row.
        start: the number of the first row.
        pairs: the texts are sentence pairs.
        on_block: called after each block with what is known of it.

    Returns:
        (features; seconds of tokenizing and computing here, and of encoding, summed over the encoder's lanes; what it
        counted).
    """
    work = _Work(encoder, schema, shard, pairs=pairs, on_block=on_block)
    first, began = 0, time.perf_counter()
    for block in blocks:
        tokenize_s = time.perf_counter() - began
        rows = table.slice(first, len(block.reasons))
        spent = {"tokenize": tokenize_s - block.compute_s} | ({"compute": block.compute_s} if block.compute_s else {})
        work.begin(_Begun(rows, start + first, block, encoder.start(block.tokens), spent))
        first, began = first + len(rows), time.perf_counter()
    return work.finish()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A block whose packs wait in the encoder's lanes."""

    rows: pa.Table
    start: int
    block: Tokenized
    call: PendingCall
    spent_s: dict[str, float]  # stage → seconds, before it was begun


class _Work:
    """Blocks on their way: the next one is tokenized while the last one is encoded."""

    def __init__(self, encoder: Encoder, schema: pa.Schema, shard: int, *, pairs: bool, on_block: OnBlock) -> None:
        self._encoder, self._schema, self._shard, self._pairs = encoder, schema, shard, pairs
        self._on_block = on_block
        self._begun: deque[_Begun] = deque()
        self._done: list[pa.Table] = []
        self._counts, self._spent_s = Counts(), Counter[str]()

    def begin(self, begun: _Begun) -> None:
        self._spent_s.update(begun.spent_s)
        self._begun.append(begun)
        if len(self._begun) > _BLOCKS_AHEAD:
            self._complete(self._begun.popleft())

    def finish(self) -> tuple[pa.Table, dict[str, float], Counts]:
        while self._begun:
            self._complete(self._begun.popleft())
        table = pa.concat_tables(self._done) if self._done else self._schema.empty_table()
        return table, {**self._spent_s, "encode": self._counts.busy_s}, self._counts

    def _complete(self, begun: _Begun) -> None:
        encoded = begun.call.result()
        self._counts += encoded.counts
        rows, block = begun.rows, begun.block
        columns = {
            **encoded.columns, "num_tokens": block.tokens.num_tokens, "truncated": block.tokens.truncated
        }  # fmt: skip
        columns = _drop_failed(columns, block, encoded.reasons)
        good = block.good
        arrays = {
            **{name: rows[name].combine_chunks() for name in self._schema.names if name in rows.column_names},
            **feature_arrays(self._encoder.feature_plan, columns, good, pairs=self._pairs),
            **{name: mask_bad_rows(values, good) for name, values in block.computed.items()},
            **row_arrays(columns, good, pa.array(block.reasons, pa.string()), shard=self._shard, start=begun.start),
        }
        self._done.append(pa.table([arrays[name] for name in self._schema.names], schema=self._schema))
        self._on_block(
            Block(
                rows=len(rows),
                tokens=len(block.tokens.input_ids),
                errors=len(rows) - int(good.sum()),
                seconds={**begun.spent_s, "encode": encoded.counts.busy_s},
                packs=encoded.counts.packs,
                packed_tokens=encoded.counts.packed_tokens,
            )
        )


def _drop_failed(columns: Columns, block: Tokenized, reasons: dict[int, str]) -> Columns:
    """Turn texts that the encoder gave up, and those with features that float16 can't hold, into error rows."""
    finite = np.ones(len(columns["num_tokens"]), np.bool_)
    finite[list(reasons)] = False
    for values in columns.values():
        finite[_too_large(values)] = False
    if finite.all():
        return columns
    rows = np.flatnonzero(block.good)
    for text in np.flatnonzero(~finite):
        block.reasons[rows[text]] = reasons.get(int(text), NOT_FINITE)
    return {name: _take(values, finite) for name, values in columns.items()}


def _too_large(values: NDArray | Ragged) -> Index:
    """The texts with a number that became infinite as it was stored in float16."""
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
