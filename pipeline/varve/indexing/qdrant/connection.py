"""Requests to a Qdrant server: repeated while it is busy or unreachable, within bounds, and errors with one message.

Knows nothing of indexes. Invariants: each request is idempotent, so it may be repeated after a lost answer; the key is
read from the environment and is in no message.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from varve.errors import JobError, RunError, one_line

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")

KEY = "QDRANT_API_KEY"
_TIMEOUT_S = 120
_BUSY = {408, 429, 500, 502, 503, 504}
_MAX_ATTEMPTS, _MAX_S = 40, 300.0
# At the start, a server that cannot be reached is probably a wrong address.
_MAX_UNREACHABLE_S = 6.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.05, 5.0


class NotCompletedError(Exception):
    """The server accepted a write, and did not complete it within its own time limit."""


def request(url: str, call: Callable[["QdrantClient"], T], *, patient: bool = True) -> T:
    """Make a request of a server, and repeat it after temporary errors.

    Args:
        url: of the server.
        call: an idempotent request.
        patient: repeat it for minutes if the server cannot be reached; else for seconds.

    Raises:
        JobError: the key is refused, or qdrant-client is missing.
        RunError: the server cannot be reached, or refuses the request.
    """
    client = _client(url, os.environ.get(KEY))
    return _repeat(url, lambda: call(client), patient=patient)


def read_json(url: str, path: str, *, patient: bool = True) -> dict[str, Any] | None:
    """The result of a GET request, without the import of qdrant-client; None if there is no such thing (404).

    Raises:
        JobError: the key is refused, or qdrant-client is missing.
        RunError: the server cannot be reached, or refuses the request.
    """
    _check_client()
    import httpx  # noqa: PLC0415 (a dependency of qdrant-client)

    key = os.environ.get(KEY)

    def get() -> dict[str, Any] | None:
        response = httpx.get(f"{url}{path}", headers={"api-key": key} if key else {}, timeout=_TIMEOUT_S)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        try:
            return response.raise_for_status().json()["result"]
        except (ValueError, LookupError, TypeError) as e:
            msg = f"{url} is not Qdrant's REST interface: its answer to GET {path} is {one_line(response.text, 100)!r}"
            raise RunError(msg) from e

    return _repeat(url, get, patient=patient)


def _repeat(url: str, call: Callable[[], T], *, patient: bool) -> T:
    def should_stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        limit = _MAX_UNREACHABLE_S if not patient and _status(error) is None else _MAX_S
        return state.attempt_number >= _MAX_ATTEMPTS or (state.seconds_since_start or 0.0) >= limit

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=should_stop,
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        reraise=True,
    )
    try:
        return retrying(call)
    except Exception as e:  # noqa: BLE001 (others are raised as they are)
        raise _translate(url, e) from None


@lru_cache(maxsize=8)
def _client(url: str, key: str | None) -> "QdrantClient":
    """One client per process: it keeps connections open, and threads share it."""
    _check_client()
    from qdrant_client import QdrantClient  # noqa: PLC0415 (0.7 s)

    return QdrantClient(url=url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)


def _check_client() -> None:
    """Check that the client is installed, without its import.

    Raises:
        JobError: it is not.
    """
    if find_spec("qdrant_client") is None:
        msg = "qdrant-client is missing: run pip install '.[qdrant]' in Varve's folder"
        raise JobError(msg)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error of qdrant-client or httpx."""
    return getattr(error, "status_code", getattr(getattr(error, "response", None), "status_code", None))


def _is_transient(error: BaseException) -> bool:
    throttled = hasattr(error, "retry_after_s")  # qdrant-client's error of status 429 with a header Retry-After
    is_busy = throttled or isinstance(error, NotCompletedError) or _status(error) in _BUSY
    return is_busy or _is_broken_connection(error)


def _is_broken_connection(error: BaseException) -> bool:
    import httpx  # noqa: PLC0415 (a dependency of qdrant-client)

    cause = getattr(error, "source", error)  # qdrant-client wraps errors of httpx
    return isinstance(cause, httpx.TransportError) and not isinstance(cause, httpx.UnsupportedProtocol)


def _translate(url: str, error: Exception) -> Exception:
    """The error that the user reads."""
    status = _status(error)
    if status in {401, 403}:
        given = "the key in QDRANT_API_KEY" if os.environ.get(KEY) else "a request without a key (QDRANT_API_KEY)"
        return JobError(f"{url} refused {given}: HTTP status {status}")
    if status is not None:
        return RunError(f"{url} refused a request: HTTP status {status} {one_line(_answer(error))}")
    if isinstance(error, NotCompletedError) or hasattr(error, "retry_after_s"):
        return RunError(f"{url} is busy: it did not complete a request within {_MAX_S:.0f} s")
    if _is_broken_connection(error) or hasattr(error, "source"):
        cause = getattr(error, "source", error)
        reason = f"{type(cause).__name__} {one_line(cause)}"
        return RunError(f"{url} cannot be reached: {reason}. Is it the address of Qdrant's REST interface?")
    return error


def _answer(error: Exception) -> str:
    content = getattr(error, "content", getattr(getattr(error, "response", None), "content", b""))
    return content.decode(errors="replace")
