"""The texts of a block → their tokens and computed columns, with a reason for every row that can't be encoded.

Where texts leave Arrow and tokens enter it: tokens travel between workers as one row of list columns, whose values are
the tokenizer's own buffers. Knows nothing of models or Ray. Invariant: every row either has windows or a reason, and a
row that has none costs no other row.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.preprocessing.computed_columns import ComputedColumn, compute_columns
from varve.preprocessing.tokenizer import Tokenizer, Tokens

_COMPUTED = "computed."


@dataclass(slots=True)
class Tokenized:
    """A block's tokens: those of its good rows, and why the others have none."""

    tokens: Tokens
    reasons: list[str | None]  # one for each row of the block
    computed: dict[str, pa.Array] = field(default_factory=dict)  # column → values of all rows
    compute_s: float = 0.0  # what computing them took; stays behind when the block travels

    @property
    def good(self) -> NDArray[np.bool_]:
        """(R,) rows that have no reason against them."""
        return np.fromiter((reason is None for reason in self.reasons), np.bool_, len(self.reasons))

    def to_arrow(self) -> pa.RecordBatch:
        """One row that holds all of it; nothing but the reasons is copied."""
        columns = {field.name: getattr(self.tokens, field.name) for field in fields(Tokens)}
        arrays = {name: _list_of(pa.array(v.reshape(-1))) for name, v in columns.items() if v is not None}
        arrays["reasons"] = _list_of(pa.array(self.reasons, pa.string()))
        arrays |= {_COMPUTED + name: _list_of(values) for name, values in self.computed.items()}
        return pa.record_batch(arrays)

    @classmethod
    def from_arrow(cls, row: pa.RecordBatch) -> "Tokenized":
        """Back from `to_arrow`; the buffers stay where they are."""
        arrays = {name: row[name].flatten() for name in row.schema.names}
        reasons = arrays.pop("reasons").to_pylist()
        names = [name for name in arrays if name.startswith(_COMPUTED)]
        computed = {name.removeprefix(_COMPUTED): arrays.pop(name) for name in names}
        columns = {name: values.to_numpy(zero_copy_only=False) for name, values in arrays.items()}
        if "spans" in columns:
            columns["spans"] = columns["spans"].reshape(-1, 2)
        return cls(Tokens(**columns), reasons, computed)


def tokenize_blocks(
    tokenizer: Tokenizer,
    table: pa.Table,
    text_columns: Sequence[str],
    block_rows: int,
    computed: Sequence[ComputedColumn] = (),
) -> Iterator[Tokenized]:
    """The tokens and computed columns of a table's blocks, each when it is asked for."""
    for first in range(0, len(table), block_rows):
        yield tokenize_block(tokenizer, table.slice(first, block_rows), text_columns, computed)


def tokenize_block(
    tokenizer: Tokenizer, block: pa.Table, text_columns: Sequence[str], computed: Sequence[ComputedColumn] = ()
) -> Tokenized:
    """Tokenize a block, and compute the columns of the user's functions.

    Args:
        tokenizer: of the model.
        block: with the text columns, and those that the functions may read.
        text_columns: one, or two for sentence pairs.
        computed: columns to compute; a row on which one fails is not tokenized.
    """
    texts = _read_texts(block, text_columns)
    began = time.perf_counter()
    columns = compute_columns(computed, block, texts.reasons)
    compute_s = time.perf_counter() - began if computed else 0.0
    return Tokenized(_tokenize(tokenizer, texts), texts.reasons, columns, compute_s)


def readable_rows(block: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """The rows whose texts are there and are text: those that functions see."""
    reasons = _read_texts(block, text_columns).reasons
    return block.filter(pa.array([reason is None for reason in reasons], pa.bool_()))


@dataclass(slots=True)
class _Texts:
    columns: Sequence[Sequence[str | None]]  # one list for each text column
    reasons: list[str | None]


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


def _tokenize(tokenizer: Tokenizer, texts: _Texts) -> Tokens:
    """Tokenize the good rows; rows on which the tokenizer fails, or whose tokens are not for the model, become bad."""
    tokens = _attempt(tokenizer, _good_texts(texts))
    if isinstance(tokens, str):  # tokenizers says not of which text
        for row, arguments in _one_by_one(texts):
            alone = _attempt(tokenizer, arguments)
            texts.reasons[row] = alone if isinstance(alone, str) else None
        tokens = tokenizer(*_good_texts(texts))
    if against := tokenizer.reasons_against(tokens):
        good_rows = [row for row, reason in enumerate(texts.reasons) if reason is None]
        for at, reason in against.items():
            texts.reasons[good_rows[at]] = reason
        tokens = tokenizer(*_good_texts(texts))
    return tokens


def _attempt(tokenizer: Tokenizer, columns: list[list[str]]) -> Tokens | str:
    """The tokens of texts, or the reason why there are none."""
    try:
        return tokenizer(*columns)
    except BaseException as e:
        # tokenizers raises bare Exceptions; where its Rust panics, what is raised is none and can't be imported.
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        return f"the tokenizer failed: {e}"


def _good_texts(texts: _Texts) -> list[list[str]]:
    return [
        [text for text, reason in zip(column, texts.reasons, strict=True) if reason is None and text is not None]
        for column in texts.columns
    ]


def _one_by_one(texts: _Texts) -> Iterator[tuple[int, list[list[str]]]]:
    for row, reason in enumerate(texts.reasons):
        if reason is None:
            yield row, [[column[row] or ""] for column in texts.columns]


def _list_of(values: pa.Array) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
