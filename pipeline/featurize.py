"""A table of texts → a table of features, block by block.

Where the stages of one worker meet: texts out of Arrow, the tokenizer, the encoder, features into Arrow. Knows nothing
of Ray, shards' files or parts' names. Invariants: rows in = rows out, in order; a block is encoded by itself, so a row
has the same neighbours in every run; a row that can't be encoded carries its reason and costs no other row.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoder.encoder import Columns, Encoder, Ragged
from pipeline.schema import feature_arrays, row_arrays
from pipeline.tokenizer import Tokens

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
) -> tuple[pa.Table, dict[str, float]]:
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
        (features, seconds spent tokenizing and encoding).
    """
    seconds = {"tokenize": 0.0, "encode": 0.0}
    pairs = len(text_columns) > 1
    blocks: list[pa.Table] = []
    for first in range(0, len(table), block_rows):
        block = table.slice(first, block_rows)
        began = time.perf_counter()
        texts = _read_texts(block, text_columns)
        tokens = _tokenize(encoder, texts)
        tokenized = time.perf_counter()
        columns = {**encoder.encode(tokens), "num_tokens": tokens.num_tokens, "truncated": tokens.truncated}
        columns = _drop_infinite(columns, texts)
        seconds["tokenize"] += tokenized - began
        seconds["encode"] += time.perf_counter() - tokenized
        good = texts.good
        errors = pa.array(texts.reasons, pa.string())
        arrays = {
            **{name: block[name].combine_chunks() for name in schema.names if name in block.column_names},
            **feature_arrays(encoder.plan, columns, good, pairs=pairs),
            **row_arrays(columns, good, errors, shard=shard, start=start + first),
        }
        blocks.append(pa.table([arrays[name] for name in schema.names], schema=schema))
        on_block(len(block), len(tokens.input_ids), len(block) - int(good.sum()))
    return (pa.concat_tables(blocks) if blocks else schema.empty_table()), seconds


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
    if finite.all():
        return columns
    for row in np.flatnonzero(texts.good)[~finite]:
        texts.reasons[row] = "the features are not finite"
    return {name: _take(values, finite) for name, values in columns.items()}


def _take(values: NDArray | Ragged, rows: NDArray[np.bool_]) -> NDArray | Ragged:
    if not isinstance(values, Ragged):
        return values[rows]
    lengths = np.diff(values.offsets)
    kept = np.repeat(rows, lengths)
    return Ragged(values.values[kept], np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[rows])]))
