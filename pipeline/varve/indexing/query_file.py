"""Reads the user's queries: JSON Lines or Parquet with the columns `text` and, where they are judged, `id`.

Knows nothing of models and indexes. Invariant: each query has a text that is not empty, and ids are distinct.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from varve.errors import JobError, RunError, one_line
from varve.output.json_text import parse_object
from varve.storage.object_store import Storage

_MAX_BYTES = 2**30
_EXPECTED = 'expected JSON Lines such as {"id": "1", "text": "a question"}, or Parquet with these columns'
_IDS = ("id", "_id")  # the second one is that of BEIR


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries of a file, in its order.

    Attributes:
        ids: as text; the number of the line from 1 where the file has none.
        texts: of the same length.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def read_queries(address: str) -> list[str]:
    """The texts of a file of queries.

    Raises:
        JobError: see `read_questions`.
    """
    return list(read_questions(address).texts)


def read_questions(address: str) -> Questions:
    """The ids and texts of a file of queries.

    Raises:
        JobError: the file does not exist, is not of this format, holds no query, one without text, or an id twice.
    """
    content = read_small_file(address)
    rows = _read_parquet(content, address) if content[:4] == b"PAR1" else _read_lines(content, address)
    ids: list[str] = []
    texts: list[str] = []
    for number, row in enumerate(rows, 1):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            msg = f"{address}: query {number} has the text {text!r:.40}: {_EXPECTED}"
            raise JobError(msg)
        texts.append(text)
        ids.append(str(next((row[key] for key in _IDS if row.get(key) is not None), number)))
    if not texts:
        msg = f"{address} holds no query: {_EXPECTED}"
        raise JobError(msg)
    repeated, times = Counter(ids).most_common(1)[0]
    if times > 1:
        msg = f"{address}: the id {repeated!r:.40} occurs {times} times: expected distinct ids"
        raise JobError(msg)
    return Questions(tuple(ids), tuple(texts))


def read_small_file(address: str) -> bytes:
    """The content of a file of at most 1 GB, in a folder or an object store.

    Raises:
        JobError: it does not exist, or is larger.
    """
    folder, slash, name = address.rpartition("/")
    try:
        content = Storage(folder + slash if slash else ".", patient=False).read_at_most(name, _MAX_BYTES)
    except RunError as e:
        msg = f"{address} cannot be read: {one_line(e)}"
        raise JobError(msg) from e
    if content is None:
        msg = f"{address}: no such file"
        raise JobError(msg)
    return content


def _read_lines(content: bytes, address: str) -> list[dict[str, Any]]:
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append(parse_object(line))
        except (ValueError, json.JSONDecodeError) as e:
            msg = f"{address}, line {number}: {one_line(e, 80)}: {_EXPECTED}"
            raise JobError(msg) from e
    return rows


def _read_parquet(content: bytes, address: str) -> list[dict[str, Any]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = [name for name in ("text", *_IDS) if name in file.schema_arrow.names]
        return file.read(columns=names).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as e:
        msg = f"{address} cannot be read as Parquet: {one_line(e, 80)}"
        raise JobError(msg) from e
