"""BM25 of a kept text column, by the library bm25s, for hybrid search.

Knows nothing of vectors. Words are runs of letters and digits in lower case, without stemming and stop words, so that
it works alike for every language that separates words. Invariants: texts are read part by part, and only the counts of
their words stay in memory; rows with equal scores are ordered by their number; a row without any word of the query is
not in the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from varve.errors import JobError
from varve.indexing.neighbours import Neighbours
from varve.output.run_output import Output

# The defaults of Lucene, Elasticsearch and OpenSearch.
_K1, _B = 1.2, 0.75
_WORD = r"(?u)\w+"
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class LexicalIndex:
    """The words of all rows of an output, in memory."""

    _index: Any  # bm25s.BM25
    _tokenizer: Any  # with the vocabulary of all rows

    @classmethod
    def build(cls, output: Output, name: str) -> "LexicalIndex":
        """Count the words of a kept column.

        Raises:
            JobError: bm25s is not installed, or the column is not kept or not a text.
            RunError: a part is missing or damaged.
        """
        _check(output, name)
        import bm25s  # noqa: PLC0415 (an extra)
        from bm25s.tokenization import Tokenizer  # noqa: PLC0415 (as above)

        tokenizer = Tokenizer(splitter=_WORD, stopwords=[])
        texts: Any = _texts(output, name)  # any iterable, although it is annotated as a list
        ids = [np.array(words, np.int32) for words in tokenizer.streaming_tokenize(texts)]
        index = bm25s.BM25(k1=_K1, b=_B, method="lucene")
        index.index((ids, tokenizer.word_to_id), show_progress=False)
        return cls(index, tokenizer)

    def search(self, texts: Sequence[str], k: int) -> Neighbours:
        """The k best rows of each text: (Q, k) row numbers and BM25 scores."""
        found = Neighbours.none(len(texts), k)
        words = self._tokenizer.streaming_tokenize(texts, update_vocab="never", allow_empty=False)
        for query, known in enumerate(words):
            if not known:
                continue
            scores = self._index.get_scores_from_ids(known)
            rows = _largest(scores, k)
            found.positions[query, : len(rows)], found.scores[query, : len(rows)] = rows, scores[rows]
        return found


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows with the k largest scores above 0, ordered by score and number."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        lowest = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= lowest]
    return rows[np.lexsort((rows, -scores[rows]))][:k]


def _texts(output: Output, name: str) -> Iterator[str]:
    for part in output.manifest.parts:
        for batch in output.batches(part, [name], _BATCH_ROWS):
            for text in batch.column(0).to_pylist():
                yield text or ""


def _check(output: Output, name: str) -> None:
    if name not in output.kept_columns:
        listed = ", ".join(output.kept_columns) or "none"
        msg = f"bm25:{name}: {output.storage.uri} has no kept column {name!r}; it has: {listed}"
        raise JobError(msg)
    kind = output.schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        msg = f"bm25:{name}: the column holds {kind}: expected texts"
        raise JobError(msg)
    if find_spec("bm25s") is None:
        msg = "BM25 needs the package bm25s: run pip install '.[bm25]' in Varve's folder"
        raise JobError(msg)
