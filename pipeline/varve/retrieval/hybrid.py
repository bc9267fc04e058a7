"""The second ranking of a hybrid search: sparse vectors of the run or of another run of the same source, or BM25.

Invariant: both rankings are of the same rows, which is checked before anything is ranked.
"""

import numpy as np

from varve.errors import JobError
from varve.indexing.neighbours import NONE, Neighbours
from varve.indexing.source import find_feature
from varve.output import feature_sets
from varve.output.run_output import Output
from varve.retrieval.collection import Collection, is_output
from varve.retrieval.fusion import best_of_rows
from varve.retrieval.lexical import LexicalIndex
from varve.retrieval.row_numbers import NO_ROW

_BM25 = "bm25:"
Partner = Collection | LexicalIndex


def open_partner(collection: Collection, name: str) -> Partner:
    """What is ranked in addition to the vectors of a collection.

    Args:
        collection: the vectors.
        name: empty for the only sparse feature of the run; a feature of the run; PATH or PATH:FEATURE of another run of
            the same source; or bm25:COLUMN, a kept column of texts.

    Raises:
        JobError: there is no such feature or column, or the other run has other rows.
        RunError: an output cannot be read.
    """
    if name.startswith(_BM25):
        return LexicalIndex.build(collection.output, name.removeprefix(_BM25))
    if not name or name in collection.output.features:
        column = find_feature(collection.output, name or _only_sparse(collection.output))
        output = collection.output
    else:
        output, feature = _open_other(collection, name)
        column = find_feature(output, feature or _only_sparse(output))
    output = output.led_by(column.name)
    if (output.storage, column) == (collection.output.storage, collection.column):
        msg = f"--hybrid {column.name}: it is the feature that is searched already: name another one"
        raise JobError(msg)
    return Collection(output, column, spread=collection.spread)


def rank_rows(collection: Collection, found: Neighbours) -> Neighbours:
    """The ranking of rows, by number, from one of positions."""
    exists = found.positions != NONE
    distinct, inverse = np.unique(found.positions[exists], return_inverse=True)
    rows = np.full(found.positions.shape, NO_ROW, np.int64)
    rows[exists] = collection.locate(distinct).numbers[inverse]
    return best_of_rows(found, rows)


def _only_sparse(output: Output) -> str:
    names = [column.name for column in output.features.values() if column.form == "sparse"]
    if len(names) != 1:
        listed = f": {', '.join(names)}" if names else ""
        msg = (
            f"--hybrid: {output.storage.uri} has {len(names)} sparse features{listed}. Name one, or write bm25:COLUMN "
            "with a kept column of texts"
        )
        raise JobError(msg)
    return names[0]


def _open_other(collection: Collection, name: str) -> tuple[Output, str | None]:
    path, _, feature = name.rpartition(":")
    if "/" in feature or not path or is_output(name):
        path, feature = name, None
    if not is_output(path):
        listed = ", ".join(collection.output.features)
        msg = (
            f"--hybrid {name}: expected a feature of {collection.output.storage.uri} ({listed}), PATH:FEATURE of "
            "another run of the same source, or bm25:COLUMN"
        )
        raise JobError(msg)
    other = feature_sets.open(path)
    if _rows_of(other) != _rows_of(collection.output):
        msg = f"--hybrid {name}: {path} is not a run of the same source as {collection.output.storage.uri}"
        raise JobError(msg)
    return other, feature


def _rows_of(output: Output) -> tuple[object, dict[int, int]]:
    """Identity of the source, and the number of rows of each shard."""
    parts = output.manifest.parts.columns
    shards, inverse = np.unique(parts["shard"].to_numpy(), return_inverse=True)
    rows = np.bincount(inverse, parts["stop"].to_numpy() - parts["start"].to_numpy(), minlength=len(shards))
    return output.manifest.resolved.get("source_identity"), dict(zip(shards.tolist(), rows.tolist(), strict=True))
