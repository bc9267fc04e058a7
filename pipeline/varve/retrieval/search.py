"""`search`: texts in, an Arrow table of their nearest rows out."""

from collections.abc import Sequence

import pyarrow as pa

from varve.errors import JobError
from varve.indexing.query_encoder import QueryOptions
from varve.retrieval.collection import open_collection
from varve.retrieval.hybrid import open_partner
from varve.retrieval.retriever import Retriever


def search(
    path: str,
    texts: Sequence[str] | str,
    k: int = 10,
    *,
    feature: str | None = None,
    index: str | None = None,
    rescore: int = 0,
    hybrid: str | None = None,
    show: Sequence[str] | None = None,
    query_prompt: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> pa.Table:
    """Find the rows of a finished output that are nearest to texts.

    Texts are encoded with the checkpoint of the run, as it declares for queries. Without an index all vectors are
    compared, in one pass over the parts; 1,000,000 vectors of 384 dimensions take about 3 seconds on a core.

    Args:
        path: output of a finished run, or an index: its folder, TARGET:DEST, or the address of a server.
        texts: one query or several.
        k: answers of each query.
        feature: name of the column; None: the only one that can be searched, or the only dense one.
        index: an index of the output at `path`; needed only if the output was moved after the index was built.
        rescore: candidates of an index whose exact scores decide; 0: the scores of the index.
        hybrid: fuse with a second ranking by reciprocal rank: "" (the run's sparse feature), the name of a feature,
            PATH:FEATURE of another run of the same source, or bm25:COLUMN.
        show: kept columns; None: those of the index, or all of the output.
        query_prompt: text before each query, in place of the one that the checkpoint declares.
        model: folder or Hub id of the run's checkpoint, if it was moved.
        trust_remote_code: Python code of the checkpoint may run.

    Returns:
        query int32 (number of the text, from 0), rank int32 (from 1), score float32, position int64, shard int32, row
        int64; for windows and chunks item, start and stop, int32; then the kept columns. Answers of a query are ordered
        by score, and equal scores by position.

    Raises:
        JobError: an argument is wrong, the run has not finished, or the checkpoint is not that of the run.
        RunError: the output, the index or the model failed.

    >>> search("features", "how to read a file", k=3)["rank"].to_pylist()
    [1, 2, 3]
    """
    options = QueryOptions(query_prompt, model, trust_remote_code)
    with open_retriever(
        path, feature=feature, index=index, rescore=rescore, hybrid=hybrid, options=options
    ) as retriever:
        columns = list(show) if show is not None else retriever.collection.default_columns()
        return retriever.answer([texts] if isinstance(texts, str) else list(texts), k, columns)


def open_retriever(
    path: str,
    *,
    feature: str | None = None,
    index: str | None = None,
    rescore: int = 0,
    hybrid: str | None = None,
    options: QueryOptions | None = None,
) -> Retriever:
    """Open what `search` searches; the arguments and errors are those of `search`."""
    collection = open_collection(path, feature, index)
    if rescore < 0 or (rescore and collection.index is None):
        wrong = "expected 0 or more" if rescore < 0 else "it needs an index: the search of an output is exact already"
        msg = f"--rescore {rescore}: {wrong}"
        raise JobError(msg)
    partner = None if hybrid is None else open_partner(collection, hybrid)
    return Retriever(collection, partner, rescore, options or QueryOptions())
