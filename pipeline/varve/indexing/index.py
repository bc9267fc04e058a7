"""`index`: the build of a search index as one call of a program."""

from collections.abc import Sequence
from typing import Any

from varve.config.index import Index
from varve.indexing.build import build
from varve.indexing.record import IndexRecord


def index(path: str, to: str, *, keep: Sequence[str] = (), **settings: Any) -> IndexRecord:
    """Build a search index of a finished output, prove its recall, and publish it; or find it published.

    Large outputs are read in tasks of Ray, which stays connected, as does a program's own Ray.

    Args:
        path: output of a finished run.
        to: TARGET:DEST, see `varve.config.index.Index`.
        keep: kept columns that are copied to the index.
        settings: the other keys of an index file, such as feature, kind, recall, memory, key, queries.

    Returns:
        The record: kind, setting of the search, recall, files.

    Raises:
        JobError: a setting is wrong, the output is not finished, or the target holds another index.
        RunError: no index reaches the recall within the memory, or the output or the target failed.

    >>> record = index("features", to="faiss:features-index", recall=0.95)
    >>> record.setting
    {}
    """
    wanted = Index.parse({"path": path, "to": to, "keep": tuple(keep), **settings})
    return build(wanted).record
