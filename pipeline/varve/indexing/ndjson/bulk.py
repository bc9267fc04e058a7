"""Sends files of bulk lines: requests of limited size, and the status of every document.

Knows nothing of the content of documents. Invariant: a document that the server refuses is an error, and one that it
was too busy for is sent again.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from varve.errors import RunError
from varve.indexing.ndjson.search_server import SearchServer, escape, reason_of

MAX_REQUEST_BYTES = 10 * 10**6
_BUSY = frozenset({429, 503})
_MAX_ATTEMPTS = 20
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 10
_NUM_EXAMPLES = 3


class BusyError(RunError):
    """The server took a request, and was too busy for some of its documents."""


def send_file(server: SearchServer, index: str, path: Path, where: str) -> int:
    """Send the documents of a compressed file; returns their number.

    Args:
        server: the server.
        index: name of the index.
        path: of the file.
        where: name of the file, for messages.

    Raises:
        RunError: the server refused documents, failed, or was busy for minutes.
    """
    sent = 0
    with pa.input_stream(str(path), compression="zstd") as lines:
        for batch in batches(_documents(lines)):
            _send(server, index, batch, where)
            sent += len(batch)
    return sent


def batches(documents: Iterable[bytes], max_bytes: int = MAX_REQUEST_BYTES) -> Iterator[list[bytes]]:
    """Documents grouped into requests of at most `max_bytes`; a larger document is a request of its own."""
    batch: list[bytes] = []
    size = 0
    for document in documents:
        if batch and size + len(document) > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document)
    if batch:
        yield batch


def _documents(stream: pa.NativeFile) -> Iterator[bytes]:
    """The two lines of each document."""
    lines = io.BufferedReader(stream, 2**20)  # pyright: ignore[reportArgumentType] (it has readinto)
    while action := lines.readline():
        yield action + lines.readline()


def _send(server: SearchServer, index: str, documents: Sequence[bytes], where: str) -> None:
    repeated = Retrying(
        retry=retry_if_exception_type(BusyError),
        stop=stop_after_attempt(_MAX_ATTEMPTS),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        reraise=True,
    )
    waiting = list(documents)

    def attempt() -> None:
        nonlocal waiting
        waiting = _send_once(server, index, waiting, where)
        if waiting:
            msg = f"{server.url}/{index}: the server is too busy for {len(waiting):,} document(s) of {where}"
            raise BusyError(msg)

    repeated(attempt)


def _send_once(server: SearchServer, index: str, documents: Sequence[bytes], where: str) -> list[bytes]:
    """Send documents; returns those for which the server was too busy.

    Raises:
        RunError: it refused some.
    """
    answer = server.request("POST", f"{escape(index)}/_bulk", b"".join(documents))
    items = answer.body.get("items", []) if isinstance(answer.body, dict) else []
    if len(items) != len(documents):
        msg = f"{server.url}/{index}: the server answered for {len(items):,} of {len(documents):,} documents of {where}"
        raise RunError(msg)
    results = [item["index"] for item in items]
    refused = [result for result in results if result["status"] >= 300 and result["status"] not in _BUSY]
    if refused:
        raise RunError(_refusal(server, index, refused, len(documents), where))
    pairs = zip(documents, results, strict=True)
    return [document for document, result in pairs if result["status"] in _BUSY]


def _refusal(server: SearchServer, index: str, refused: Sequence[dict[str, Any]], sent: int, where: str) -> str:
    examples = "".join(
        f"\n  {json.dumps(result['_id'], ensure_ascii=False)}: {reason_of(result.get('error', result['status']))}"
        for result in refused[:_NUM_EXAMPLES]
    )
    more = f"\n  and {len(refused) - _NUM_EXAMPLES:,} more" if len(refused) > _NUM_EXAMPLES else ""
    return (
        f"{server.url}/{index}: the server refused {len(refused):,} of {sent:,} documents of {where}:{examples}{more}\n"
        "The alias was not changed. Delete the index, correct the reason, and run the same command again"
    )
