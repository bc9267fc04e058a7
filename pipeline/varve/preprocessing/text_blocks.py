"""Turns blocks of rows into tokens and computed columns, with a reason for every row that cannot be encoded.

Knows nothing of models or Ray. Invariant: every row has either windows or a reason, and a row with a reason does not
affect other rows.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import RunError
from varve.monitoring.row_errors import null_text
from varve.preprocessing.computed_columns import ComputedColumn, compute_columns
from varve.preprocessing.tokenizer import Tokenizer
from varve.preprocessing.tokens import Tokens


@dataclass(slots=True)
class Tokenized:
    """The tokens of a block's good rows, and the reasons why the other rows have none."""

    tokens: Tokens
    reasons: list[str | None]  # one per row of the block; None for good rows
    computed: dict[str, pa.Array] = field(default_factory=dict)  # column → values of all rows
    tokenize_s: float = 0.0  # seconds spent on the texts
    compute_s: float = 0.0  # seconds spent on computed columns

    @property
    def good(self) -> NDArray[np.bool_]:
        """(R,) whether a row has no reason."""
        return np.fromiter((reason is None for reason in self.reasons), np.bool_, len(self.reasons))


def tokenize_blocks(
    tokenizer: Tokenizer,
    table: pa.Table,
    text_columns: Sequence[str],
    block_rows: int,
    computed: Sequence[ComputedColumn] = (),
) -> Iterator[Tokenized]:
    """Tokenize a table block by block, lazily; see `tokenize_block`."""
    for first in range(0, len(table), block_rows):
        yield tokenize_block(tokenizer, table.slice(first, block_rows), text_columns, computed)


def tokenize_block(
    tokenizer: Tokenizer, block: pa.Table, text_columns: Sequence[str], computed: Sequence[ComputedColumn] = ()
) -> Tokenized:
    """Tokenize a block and compute the columns of the user's functions.

    Args:
        tokenizer: of the model.
        block: rows with the text columns and the columns that functions may read.
        text_columns: one, or two for sentence pairs.
        computed: columns to compute. A row for which a function fails is not tokenized.
    """
    began = time.perf_counter()
    texts = _read_texts(block, text_columns)
    began_computing = time.perf_counter()
    columns = compute_columns(computed, block, texts.reasons)
    compute_s = time.perf_counter() - began_computing if computed else 0.0
    tokens = _tokenize(tokenizer, texts)
    return Tokenized(tokens, texts.reasons, columns, time.perf_counter() - began - compute_s, compute_s)


def readable_rows(block: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """The rows with valid texts, which functions receive."""
    reasons = _read_texts(block, text_columns).reasons
    return block.filter(pa.array([reason is None for reason in reasons], pa.bool_()))


@dataclass(slots=True)
class _Texts:
    """The texts of a block and the reasons against its rows."""

    columns: Sequence[Sequence[str | None]]  # one list per text column
    reasons: list[str | None]

    def good_columns(self) -> list[list[str]]:
        """The texts of good rows, one list per text column."""
        return [
            [text for text, reason in zip(column, self.reasons, strict=True) if reason is None and text is not None]
            for column in self.columns
        ]


def _read_texts(block: pa.Table, text_columns: Sequence[str]) -> _Texts:
    columns = [_to_strings(block[name]) for name in text_columns]
    reasons: list[str | None] = [None] * len(block)
    for (texts, invalid), name in zip(columns, text_columns, strict=True):
        for row, text in enumerate(texts):
            if text is None and reasons[row] is None:
                reasons[row] = invalid.get(row, null_text(name))
    return _Texts([texts for texts, _ in columns], reasons)


def _to_strings(column: pa.ChunkedArray) -> tuple[list[str | None], dict[int, str]]:
    """A text column as Python strings, which `tokenizers` needs, and {row: reason} for texts that are not UTF-8."""
    try:
        return list(column.to_pylist()), {}
    except UnicodeDecodeError:
        pass
    texts: list[str | None] = []
    invalid: dict[int, str] = {}
    for row, content in enumerate(column.cast(pa.large_binary()).to_pylist()):
        text = None
        if content is not None:
            try:
                text = content.decode()
            except UnicodeDecodeError as e:
                invalid[row] = f"text is not UTF-8: byte 0x{content[e.start]:02x} at {e.start}"
        texts.append(text)
    return texts, invalid


def _tokenize(tokenizer: Tokenizer, texts: _Texts) -> Tokens:
    """Tokenize the good rows; adds a reason for rows that cannot be tokenized or that the model cannot encode."""
    tokens = _try_tokenize(tokenizer, texts.good_columns())
    if isinstance(tokens, str):  # the error does not name the text that caused it: tokenize one row at a time
        for row, reason in enumerate(texts.reasons):
            if reason is None:
                alone = _try_tokenize(tokenizer, [[column[row] or ""] for column in texts.columns])
                texts.reasons[row] = alone if isinstance(alone, str) else None
        tokens = tokenizer(*texts.good_columns())
    if unencodable := tokenizer.find_unencodable(tokens):
        good_rows = [row for row, reason in enumerate(texts.reasons) if reason is None]
        for text, reason in unencodable.items():
            texts.reasons[good_rows[text]] = reason
        tokens = tokenizer(*texts.good_columns())
    return tokens


def _try_tokenize(tokenizer: Tokenizer, columns: list[list[str]]) -> Tokens | str:
    """The tokens of texts, or the reason why tokenizing fails."""
    try:
        return tokenizer(*columns)
    except RunError:
        raise  # a difference between tokenizers is not the fault of a row
    except BaseException as e:
        # `tokenizers` raises bare Exceptions. A Rust panic raises a BaseException whose class cannot be imported.
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        return f"the tokenizer failed: {e}"
