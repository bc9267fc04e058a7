"""A table of texts → a table of features, block by block.

Where the stages of one worker meet: texts out of Arrow, the tokenizer, the encoder, features into Arrow. Knows nothing
of Ray, shards' files or parts' names. Invariants: rows in = rows out, in order; a block is encoded by itself, so a row
has the same neighbours in every run; a row that can't be encoded carries its reason and costs no other row.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.encoder import Call, Encoder
from pipeline.encoder.results import Columns, Counts, Ragged
from pipeline.schema import feature_arrays, row_arrays
from pipeline.tokenizer import Tokens

# Blocks in the encoder's lanes beside the one that is being tokenized: no lane runs dry at a block's end.
_BLOCKS_AHEAD = 1

OnBlock = Callable[[int, int, int], None]  # rows, tokens, errors of a block that is done


@dataclass(slots=True)
class _Texts:
    """The texts of a block, and why some of them can't be encoded."""

    columns: Sequence[Sequence[str | None]]  # one list for each text column
    reasons: list[str | None]

    @property
    def good(self) -> NDArray[np.bool_]:
        return np.fromiter((reason is None for reason in self.reasons), np.bool_, len(self.reasons))


def featurize(
    encoder: Encoder,
    table: pa.Table,
    *,
    text_columns: Sequence[str],
    schema: pa.Schema,
    shard: int,
    start: int,
    block_rows: int,
    on_block: OnBlock = lambda *_: None,
) -> tuple[pa.Table, dict[str, float], Counts]:
    """Encode a table of rows.

    Args:
        encoder: does the work.
        table: text columns and kept columns.
        text_columns: one, or two for sentence pairs.
        schema: of the result.
        shard: written into every row.
        start: the number of the first row.
        block_rows: rows that are encoded together.
        on_block: called after each block.

    Returns:
        (features, seconds spent tokenizing and waiting for the encoder, what the encoder counted).
    """
    work = _Work(encoder, schema, shard, pairs=len(text_columns) > 1, on_block=on_block)
    for first in range(0, len(table), block_rows):
        block = table.slice(first, block_rows)
        began = time.perf_counter()
        texts = _read_texts(block, text_columns)
        tokens = _tokenize(encoder, texts)
        work.seconds["tokenize"] += time.perf_counter() - began
        work.begin(_Begun(block, start + first, texts, tokens, encoder.start(tokens)))
    return work.finish()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A block whose packs wait in the encoder's lanes."""

    block: pa.Table
    start: int
    texts: _Texts
    tokens: Tokens
    call: Call


class _Work:
    """Blocks on their way: the next one is tokenized while the last one is encoded."""

    def __init__(self, encoder: Encoder, schema: pa.Schema, shard: int, *, pairs: bool, on_block: OnBlock) -> None:
        self._encoder, self._schema, self._shard, self._pairs = encoder, schema, shard, pairs
        self._on_block = on_block
        self._begun: deque[_Begun] = deque()
        self._done: list[pa.Table] = []
        self._counts = Counts()
        self.seconds = {"tokenize": 0.0, "encode": 0.0}

    def begin(self, begun: _Begun) -> None:
        self._begun.append(begun)
        if len(self._begun) > _BLOCKS_AHEAD:
            self._complete(self._begun.popleft())

    def finish(self) -> tuple[pa.Table, dict[str, float], Counts]:
        while self._begun:
            self._complete(self._begun.popleft())
        table = pa.concat_tables(self._done) if self._done else self._schema.empty_table()
        return table, self.seconds, self._counts

    def _complete(self, begun: _Begun) -> None:
        began = time.perf_counter()
        encoded = begun.call.result()
        self.seconds["encode"] += time.perf_counter() - began
        self._counts += encoded.counts
        texts, tokens, block = begun.texts, begun.tokens, begun.block
        good_rows = np.flatnonzero(texts.good)
        columns = {**encoded.columns, "num_tokens": tokens.num_tokens, "truncated": tokens.truncated}
        kept = np.ones(len(good_rows), np.bool_)
        for text, reason in encoded.reasons.items():
            texts.reasons[good_rows[text]] = reason
            kept[text] = False
        columns = _drop_infinite(_take_rows(columns, kept), texts)
        good = texts.good
        arrays = {
            **{name: block[name].combine_chunks() for name in self._schema.names if name in block.column_names},
            **feature_arrays(self._encoder.plan, columns, good, pairs=self._pairs),
            **row_arrays(columns, good, pa.array(texts.reasons, pa.string()), shard=self._shard, start=begun.start),
        }
        self._done.append(pa.table([arrays[name] for name in self._schema.names], schema=self._schema))
        self._on_block(len(block), len(tokens.input_ids), len(block) - int(good.sum()))


def _read_texts(block: pa.Table, text_columns: Sequence[str]) -> _Texts:
    columns = [_strings(block[name]) for name in text_columns]
    reasons: list[str | None] = [None] * len(block)
    for (texts, broken), name in zip(columns, text_columns, strict=True):
        for row, text in enumerate(texts):
            if text is None and reasons[row] is None:
                reasons[row] = broken.get(row, f"{name} is null")
    return _Texts([texts for texts, _ in columns], reasons)


def _strings(column: pa.ChunkedArray) -> tuple[list[str | None], dict[int, str]]:
    """A text column as Python strings, which is all that `tokenizers` takes, and why some of them are none."""
    try:
        return list(column.to_pylist()), {}
    except UnicodeDecodeError:
        pass
    texts: list[str | None] = []
    broken: dict[int, str] = {}
    for row, content in enumerate(column.cast(pa.large_binary()).to_pylist()):
        if content is None:
            texts.append(None)
            continue
        try:
            texts.append(content.decode())
        except UnicodeDecodeError as e:
            texts.append(None)
            broken[row] = f"text is not UTF-8: byte 0x{content[e.start]:02x} at {e.start}"
    return texts, broken


def _tokenize(encoder: Encoder, texts: _Texts) -> Tokens:
    """Tokenize the good rows; rows on which the tokenizer fails, or which give no token, become bad ones."""
    try:
        tokens = encoder.tokenizer(*_good_texts(texts))
    except Exception:  # noqa: BLE001 (tokenizers raises bare Exceptions, and says not for which text)
        for row, arguments in _one_by_one(texts):
            try:
                encoder.tokenizer(*arguments)
            except Exception as e:  # noqa: BLE001
                texts.reasons[row] = f"the tokenizer failed: {e}"
        tokens = encoder.tokenizer(*_good_texts(texts))
    if len(tokens.lengths) and not tokens.lengths.all():
        good_rows = np.flatnonzero(texts.good)
        for at in np.flatnonzero(tokens.num_tokens == 0):
            texts.reasons[good_rows[at]] = "the text has no tokens"
        tokens = encoder.tokenizer(*_good_texts(texts))
    return tokens


def _good_texts(texts: _Texts) -> list[list[str]]:
    return [
        [text for text, reason in zip(column, texts.reasons, strict=True) if reason is None and text is not None]
        for column in texts.columns
    ]


def _one_by_one(texts: _Texts) -> Iterator[tuple[int, list[list[str]]]]:
    for row, reason in enumerate(texts.reasons):
        if reason is None:
            yield row, [[column[row] or ""] for column in texts.columns]


def _drop_infinite(columns: Columns, texts: _Texts) -> Columns:
    """Turn rows with NaN or infinite features into error rows."""
    finite = np.ones(len(columns["num_tokens"]), np.bool_)
    for values in columns.values():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and len(values):
            finite &= np.isfinite(values).reshape(len(values), -1).all(axis=1)
    for row in np.flatnonzero(texts.good)[~finite]:
        texts.reasons[row] = "the features are not finite"
    return _take_rows(columns, finite)


def _take_rows(columns: Columns, rows: NDArray[np.bool_]) -> Columns:
    return columns if rows.all() else {name: _take(values, rows) for name, values in columns.items()}


def _take(values: NDArray | Ragged, rows: NDArray[np.bool_]) -> NDArray | Ragged:
    if not isinstance(values, Ragged):
        return values[rows]
    lengths = np.diff(values.offsets)
    kept = np.repeat(rows, lengths)
    return Ragged(values.values[kept], np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[rows])]))
