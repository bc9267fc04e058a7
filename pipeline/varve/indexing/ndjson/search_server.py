"""Requests to OpenSearch or Elasticsearch, repeated after transient errors.

Knows nothing of documents. Credentials come from the environment alone: OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD, or
ELASTIC_API_KEY. Invariant: no message and no pickle holds one.
"""

import json
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from varve.errors import JobError, RunError, one_line

_JSON, _LINES = "application/json", "application/x-ndjson"
_TIMEOUT_S = (4, 120)  # to connect, to answer
_TRANSIENT = frozenset({408, 429, 502, 503, 504})
_MAX_ATTEMPTS, _MAX_S, _MAX_IMPATIENT_S = 20, 300, 6
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 10


class TransientError(RunError):
    """A request failed in a way that a repetition may not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body of a response; the body of another type is its text."""

    status: int
    body: Any

    @property
    def reason(self) -> str:
        """Why a request failed, as one line."""
        error = self.body.get("error", self.body) if isinstance(self.body, dict) else self.body
        return reason_of(error)


def reason_of(error: Any) -> str:
    """The innermost cause of an error of the server."""
    while isinstance(error, dict):
        if "caused_by" in error:
            error = error["caused_by"]
        else:
            error = error.get("reason") or error.get("type") or json.dumps(error)
    return one_line(error)


@dataclass(frozen=True, slots=True)
class SearchServer:
    """The address of a server.

    Attributes:
        url: https://HOST:PORT, with a path if the server is behind one; without credentials and parameters.
        patient: repeat requests for minutes while the server cannot be reached.
    """

    url: str
    patient: bool = True

    @classmethod
    def parse(cls, url: str) -> "SearchServer":
        """The server of a URL.

        Raises:
            JobError: it is not an HTTP address.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"send: {url!r} is not allowed: expected https://HOST:PORT, or http://HOST:PORT"
            raise JobError(msg)
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}")

    def request(
        self, method: str, path: str, body: dict[str, Any] | bytes | None = None, *, allowed: tuple[int, ...] = ()
    ) -> Answer:
        """Make a request that may be repeated; bytes are sent as lines of JSON.

        Args:
            method: of HTTP.
            path: below the server's URL, already escaped.
            body: an object, or lines.
            allowed: statuses that are answers too, in addition to 200 to 299.

        Raises:
            RunError: the server cannot be reached, or refuses.
        """
        repeated = Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(_MAX_ATTEMPTS) | stop_after_delay(_MAX_S if self.patient else _MAX_IMPATIENT_S),
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
            reraise=True,
        )
        answer = repeated(self._once, method, path, body)
        if 200 <= answer.status < 300 or answer.status in allowed:
            return answer
        msg = f"{self.url}/{path}: the server refused the request ({answer.status}): {answer.reason}"
        raise RunError(f"{msg}. {_ADVICE[answer.status]}" if answer.status in _ADVICE else msg)

    def _once(self, method: str, path: str, body: dict[str, Any] | bytes | None) -> Answer:
        import requests  # noqa: PLC0415 (slow to import)

        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": _LINES if isinstance(body, bytes) else _JSON, **_authorization()}
        try:
            response = requests.request(
                method, f"{self.url}/{path}", data=content, headers=headers, auth=_basic(), timeout=_TIMEOUT_S
            )
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
            cause = getattr(e.args[0], "reason", e) if e.args else e
            msg = f"{self.url} cannot be reached: {one_line(cause)}. Check the address, and that the server runs"
            raise TransientError(msg) from e
        except requests.RequestException as e:
            msg = f"{self.url}/{path}: the request failed: {one_line(e)}"
            raise RunError(msg) from e
        answer = Answer(response.status_code, _parse(response.text))
        if answer.status in _TRANSIENT:
            msg = f"{self.url}/{path}: the server is busy ({answer.status}): {answer.reason}"
            raise TransientError(msg)
        return answer


_CREDENTIALS = "Set OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD, or ELASTIC_API_KEY, in the environment"
_ADVICE = {
    401: _CREDENTIALS,
    403: f"{_CREDENTIALS}, of a user that may create and write the index",
    413: "Raise http.max_content_length of the server, or the limit of the proxy before it, to 10 MB or more",
}


def escape(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def _authorization() -> dict[str, str]:
    key = os.environ.get("ELASTIC_API_KEY")
    return {"Authorization": f"ApiKey {key}"} if key else {}


def _basic() -> tuple[str, str] | None:
    user = os.environ.get("OPENSEARCH_USERNAME")
    return (user, os.environ.get("OPENSEARCH_PASSWORD", "")) if user and "ELASTIC_API_KEY" not in os.environ else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
