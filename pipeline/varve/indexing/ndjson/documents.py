"""The lines of a bulk request for the rows of one part: an action and a document for each vector.

    {"index":{"_id":"doc-7"}}
    {"position":7,"shard":0,"row":7,"doc_id":"doc-7","title":"...","embedding":[0.0063856714,-0.006709431,...]}

Knows nothing of files and servers. Invariants: the bytes are a function of the rows; a document is two lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from varve.encoder.ragged import Ragged
from varve.errors import RunError
from varve.indexing.ndjson.json_columns import TEXT, join_texts, json_texts, quote, vector_texts, weight_texts
from varve.indexing.rows import ITEM, ROW, SHARD, IndexRows, SparseVectors, Vectors, take

_BLOCK_VALUES, _MAX_BLOCK_ROWS = 2**20, 4096
_ROW_VALUES_OF_SPARSE = 256  # about
DOT = "\N{ONE DOT LEADER}"  # both servers refuse names of weights that hold a full stop


@dataclass(frozen=True, slots=True)
class DocumentFormat:
    """How the rows of a feature become documents.

    Attributes:
        feature: name of the field with the vector.
        key: kept column that is the `_id`; None: shard/row, or shard/row/item.
        is_binary: the vector is stored as bytes of 8 bits each, from -128 to 127.
        weight_names: JSON string of each dimension of a sparse feature; None for a dense one.
    """

    feature: str
    key: str | None
    is_binary: bool
    weight_names: pa.Array | None

    def blocks(self, rows: IndexRows) -> Iterator[memoryview]:
        """The lines of all documents, some rows at a time.

        Raises:
            RunError: a vector has a value that is not finite, or a negative weight.
        """
        width = rows.vectors.shape[1] if isinstance(rows.vectors, np.ndarray) else _ROW_VALUES_OF_SPARSE
        step = min(max(_BLOCK_VALUES // width, 1), _MAX_BLOCK_ROWS)
        for start in range(0, len(rows), step):
            some = slice(start, min(start + step, len(rows)))
            lines = self._lines(take(rows.vectors, some), rows.ids.slice(start, some.stop - start))
            yield _content(lines)

    def _lines(self, vectors: Vectors, ids: pa.Table) -> pa.Array:
        """(N,) both lines of N documents."""
        pieces: list[pa.Array | str] = ['{"index":{"_id":', self._ids(ids), "}}\n{"]
        for name in ids.column_names:
            pieces += [f"{_name(name)}:", json_texts(ids[name]), ","]
        return join_texts([*pieces, f"{_name(self.feature)}:", self._vectors(vectors, ids), "}\n"])

    def _ids(self, ids: pa.Table) -> pa.Array:
        """(N,) `_id` as JSON."""
        names = [self.key] if self.key else [SHARD, ROW]
        names += [ITEM] if ITEM in ids.column_names else []
        texts = [ids[name].combine_chunks().cast(TEXT) for name in names]
        joined = [piece for text in texts for piece in ("/", text)][1:]
        return quote(join_texts(joined))

    def _vectors(self, vectors: Vectors, ids: pa.Table) -> pa.Array:
        if isinstance(vectors, SparseVectors):
            return self._weights(vectors, ids)
        assert isinstance(vectors, np.ndarray)
        if self.is_binary:
            return vector_texts(np.packbits(vectors > 0, axis=1).view(np.int8))
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise _not_allowed(self.feature, ids, np.logical_not(finite), "values that are not finite")
        return vector_texts(vectors)

    def _weights(self, vectors: SparseVectors, ids: pa.Table) -> pa.Array:
        """Weights of 0 are left out."""
        values, lengths = vectors.weights.values, np.diff(vectors.weights.offsets)
        row_of = np.repeat(np.arange(len(vectors)), lengths)
        bad = np.bincount(row_of[~((values >= 0) & np.isfinite(values))], minlength=len(vectors)) > 0
        if bad.any():
            raise _not_allowed(self.feature, ids, bad, "weights that are negative or not finite")
        kept = values > 0
        assert self.weight_names is not None
        names = self.weight_names.take(pa.array(vectors.ids.values[kept]))
        ends = np.cumsum(np.bincount(row_of[kept], minlength=len(vectors)))
        return weight_texts(names, Ragged(values[kept], np.concatenate([np.zeros(1, np.int64), ends])))


def name_weights(tokens: Sequence[str]) -> pa.Array:
    """JSON strings that name the dimensions of a sparse feature: its tokens, with `DOT` for a full stop.

    A dimension without a token, or with a name that another has too, is named `#` and its number.
    """
    names: dict[str, int] = {}
    for index, token in enumerate(tokens):
        name = token.replace(".", DOT) or f"#{index}"
        while name in names:
            name = f"#{index}{name}"
        names[name] = index
    return quote(pa.array(list(names), TEXT))


def _not_allowed(feature: str, ids: pa.Table, rows: np.ndarray, what: str) -> RunError:
    first = ids.slice(int(np.flatnonzero(rows)[0]), 1).to_pylist()[0]
    return RunError(f"{feature} has {what} in shard {first[SHARD]}, row {first[ROW]}, which a server refuses")


def _name(name: str) -> str:
    return quote(pa.array([name]))[0].as_py()


def _content(lines: pa.Array) -> memoryview:
    """The bytes of all texts, without a copy."""
    offsets = np.frombuffer(lines.buffers()[1], np.int64)
    start, stop = offsets[lines.offset], offsets[lines.offset + len(lines)]
    return memoryview(lines.buffers()[2])[start:stop]
