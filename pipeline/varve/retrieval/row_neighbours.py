"""The rows of an output that are nearest to a text or to one of its rows, as a table."""

from collections.abc import Sequence

import pyarrow as pa

from varve.errors import JobError
from varve.indexing.query_encoder import QueryOptions
from varve.retrieval.retriever import QUERY
from varve.retrieval.search import open_retriever


def find_neighbours(
    path: str,
    text_or_row: str | tuple[int, int],
    k: int = 10,
    *,
    feature: str | None = None,
    index: str | None = None,
    show: Sequence[str] | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> pa.Table:
    """Find the rows that are nearest to a text, or to a row (which is not among them).

    Args:
        path: output of a finished run, or an index of it.
        text_or_row: a text; or (shard, row).
        k: number of rows.
        feature: see `varve.search`, as for the other arguments.
        index: of the output.
        show: kept columns.
        model: the run's checkpoint, if it was moved.
        trust_remote_code: Python code of the checkpoint may run.

    Returns:
        The table of `varve.search` without the column `query`.

    Raises:
        JobError: an argument is wrong, or the row has no vector.
        RunError: the output, the index or the model failed.
    """
    options = QueryOptions(None, model, trust_remote_code)
    with open_retriever(path, feature=feature, index=index, options=options) as retriever:
        columns = list(show) if show is not None else retriever.collection.default_columns()
        if isinstance(text_or_row, str):
            found = retriever.answer([text_or_row], k, columns)
        else:
            found = retriever.answer_row(*_checked(text_or_row), k, columns)
        return found.drop_columns([QUERY])


def _checked(row: object) -> tuple[int, int]:
    try:
        shard, number = row  # pyright: ignore[reportGeneralTypeIssues] (checked here)
        return int(shard), int(number)
    except (TypeError, ValueError) as e:
        msg = f"{row!r:.200} is neither a text nor a pair (shard, row)"
        raise JobError(msg) from e
