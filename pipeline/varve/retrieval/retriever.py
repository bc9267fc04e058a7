"""Answers texts: encodes them, ranks vectors and, for a hybrid search, rows; and reads what is shown of the answers.

Invariants: answers of a query are ordered by score, then by position (of a hybrid search, by row); the tables of two
searches of the same output are equal.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varve.errors import JobError
from varve.indexing.neighbours import NONE, Neighbours
from varve.indexing.query_encoder import QueryEncoder, QueryOptions
from varve.indexing.rows import ITEM, POSITION, Vectors
from varve.retrieval.collection import START, STOP, Collection
from varve.retrieval.fusion import fuse
from varve.retrieval.hybrid import Partner, rank_rows
from varve.retrieval.row_numbers import NO_ROW, positions_of, read_rows, row_number

QUERY, RANK, SCORE = "query", "rank", "score"
_DEPTH = 100  # of the rankings that are fused

logger = logging.getLogger("varve")


@dataclass(frozen=True)
class Retriever:
    """How texts are answered. A context: its end closes the index.

    Attributes:
        collection: the vectors.
        partner: what is ranked in addition, for a hybrid search.
        rescored: candidates of an index whose exact scores decide; 0: the scores of the index.
        options: of the encoding of queries.
    """

    collection: Collection
    partner: Partner | None = None
    rescored: int = 0
    options: QueryOptions = field(default_factory=QueryOptions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.collection.__exit__()

    def answer(self, texts: Sequence[str], k: int, columns: Sequence[str], depth: int | None = None) -> pa.Table:
        """The k best answers of each text.

        Args:
            texts: Q queries, none of them empty.
            k: at least 1; fewer are returned if there are fewer vectors.
            columns: kept columns of the run.
            depth: of the rankings that a hybrid search fuses; None: 100, or 10 k if that is more.

        Returns:
            query int32 (number of the text), rank int32 (from 1), score float32, position int64, shard int32, row
            int64; for windows and chunks item int32 and the characters start and stop, int32; then the columns. A
            hybrid search leaves position (and item, start, stop) null where a row has none that is known.

        Raises:
            JobError: a text is empty or not valid Unicode, or the checkpoint is not that of the run.
            RunError: the output, the index or the model failed.
        """
        _check_texts(texts, k)
        vectors = self._encode(texts)
        if self.partner is None:
            found = self.collection.nearest(vectors[0], k, self.rescored)
            return _tabulate(found, self.collection.rows(_listed(found), columns))
        depth = max(depth or max(_DEPTH, 10 * k), k)
        dense = self.collection.nearest(vectors[0], depth, max(self.rescored, depth) if self.rescored else 0)
        rankings = [rank_rows(self.collection, dense), self._rank_partner(vectors, texts, depth)]
        return self._fused_table(fuse(rankings, k), dense, columns)

    def answer_row(self, shard: int, row: int, k: int, columns: Sequence[str]) -> pa.Table:
        """The k rows of the collection that are nearest to one of its rows, without that row itself.

        Args:
            shard: number of the shard of the row.
            row: its number in the shard.
            k: at least 1; fewer are returned if there are fewer vectors.
            columns: kept columns of the run.

        Returns:
            As `answer`, with 0 as `query`.

        Raises:
            JobError: there is no such row, it has no vector, or rows of the feature hold several vectors.
            RunError: the output or the index cannot be read.
        """
        _check_number(k)
        own = self._position_of(shard, row)
        found = self.collection.nearest(self.collection.source.at(np.array([own])), k + 1, self.rescored)
        is_own = found.positions == own
        others = replace(found, scores=np.where(is_own, -np.inf, found.scores).astype(np.float32))
        others = replace(others, positions=np.where(is_own, NONE, found.positions)).best(k)
        return _tabulate(others, self.collection.rows(_listed(others), columns))

    def _position_of(self, shard: int, row: int) -> int:
        source = self.collection.source
        if source.has_items:
            msg = (
                f"{source.column.name}: rows hold several vectors ({source.column.form}), so a row has no neighbours. "
            )
            raise JobError(msg + "Pass a text")
        (position,) = positions_of(source, np.array([row_number(source.output, shard, row)]))
        if position == NO_ROW:
            msg = f"row {row} of shard {shard} has no vector of {source.column.name}: see its column `error`"
            raise JobError(msg)
        return int(position)

    def _encode(self, texts: Sequence[str]) -> list[Vectors]:
        """The vectors of the texts for the collection and, if it has vectors, for the partner; one model is loaded."""
        partner = self.partner if isinstance(self.partner, Collection) else None
        if partner and partner.output is self.collection.output:
            columns = [self.collection.column, partner.column]
            vectors = self._encode_for(self.collection, columns, texts)
            return [vectors[column.name] for column in columns]
        found = [self._encode_for(self.collection, [self.collection.column], texts)[self.collection.column.name]]
        if partner:
            found.append(self._encode_for(partner, [partner.column], texts)[partner.column.name])
        return found

    def _encode_for(self, collection: Collection, columns: Sequence, texts: Sequence[str]) -> dict[str, Vectors]:
        # The prompt and the folder that the user names are those of the first model.
        own = collection.output is self.collection.output
        options = self.options if own else QueryOptions(trust_remote_code=self.options.trust_remote_code)
        encoder = QueryEncoder.open(collection.output, columns, options)
        if encoder.remark:
            logger.warning("%s", encoder.remark)
        return encoder.encode(texts)

    def _rank_partner(self, vectors: Sequence[Vectors], texts: Sequence[str], depth: int) -> Neighbours:
        if isinstance(self.partner, Collection):
            return rank_rows(self.partner, self.partner.nearest(vectors[1], depth))
        assert self.partner is not None
        return self.partner.search(texts, depth)

    def _fused_table(self, fused: Neighbours, dense: Neighbours, columns: Sequence[str]) -> pa.Table:
        numbers = _listed(fused)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        table = read_rows(self.collection.output, distinct, columns).take(pa.array(inverse))
        if not self.collection.source.has_items:
            positions = positions_of(self.collection.source, distinct)[inverse]
            return _tabulate(fused, table.add_column(0, POSITION, [_nullable(positions, pa.int64())]))
        positions = self._best_positions(fused, dense)
        table = table.add_column(0, POSITION, [_nullable(positions, pa.int64())])
        known = positions != NONE
        located = self.collection.locate(positions[known])
        assert located.items is not None
        assert located.spans is not None
        values = {ITEM: located.items, START: located.spans[:, 0], STOP: located.spans[:, 1]}
        for at, (name, found) in enumerate(values.items(), 3):
            cells = np.full(len(positions), NONE, np.int32)
            cells[known] = found
            table = table.add_column(at, name, [_nullable(cells, pa.int32())])
        return _tabulate(fused, table)

    def _best_positions(self, fused: Neighbours, dense: Neighbours) -> NDArray[np.int64]:
        """The best position of each fused row, in the order of `_listed`; `NONE` where only the partner found it."""
        exists = dense.positions != NONE
        rows = np.full(dense.positions.shape, NONE, np.int64)
        rows[exists] = self.collection.locate(dense.positions[exists]).numbers
        best: list[int] = []
        for query, of_query in enumerate(fused.positions):
            places = dict(zip(rows[query, ::-1].tolist(), dense.positions[query, ::-1].tolist(), strict=True))
            best += [places.get(row, NONE) for row in of_query[of_query != NONE].tolist()]
        return np.array(best, np.int64)


def _listed(found: Neighbours) -> NDArray[np.int64]:
    """The positions of all queries, one query after another."""
    return found.positions[found.positions != NONE]


def _tabulate(found: Neighbours, rows: pa.Table) -> pa.Table:
    """The table of answers; `rows` describes `_listed(found)`."""
    query_of, slot = np.nonzero(found.positions != NONE)
    firsts = {
        QUERY: pa.array(query_of, pa.int32()),
        RANK: pa.array(slot + 1, pa.int32()),
        SCORE: pa.array(found.scores[query_of, slot], pa.float32()),
    }
    return pa.table({**firsts, **{name: rows[name] for name in rows.column_names}})


def _nullable(values: NDArray, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind, mask=values == NONE)


def _check_number(k: int) -> None:
    if k < 1:
        msg = f"k: {k} is not allowed: expected 1 or more"
        raise JobError(msg)


def _check_texts(texts: Sequence[str], k: int) -> None:
    _check_number(k)
    for number, text in enumerate(texts, 1):
        if not text.strip():
            msg = f"query {number} is empty: expected a text. Is a variable of the shell unset?"
            raise JobError(msg)
        try:
            text.encode()
        except UnicodeEncodeError as e:
            msg = f"query {number} is not valid Unicode: {text!r:.60}"
            raise JobError(msg) from e
