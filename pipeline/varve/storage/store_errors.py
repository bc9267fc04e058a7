"""What an error of a store means: in the store's own words, whether trying again can help, and what to check.

Pure: reads messages, calls nothing. Clients put every answer that they don't know into one exception class, so the
HTTP status, the code in the answer's body and the kind of a broken connection are taken from the text.
"""

import re
from dataclasses import dataclass

from varve.errors import one_line

NO_SPACE = "No space left on device"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")

# 408 timed out, 429 too many, 5xx the server's own trouble; 501 and 505 stay as they are.
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_BAD_REQUEST = 400
# Answers that come with another status: S3 says 400 to a slow upload and 409 to conditional writes that cross.
_PASSING_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ServerBusy"}
    | {"ConditionalRequestConflict", "OperationTimedOut", "TooManyRequests", "ThrottlingException"}
)
_NO_CONTAINER = frozenset({"NoSuchBucket", "ContainerNotFound", "ResourceNotFound"})
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request, understood."""

    status: int | None  # of the HTTP answer; None where none came
    code: str  # that the store gave, such as SlowDown; empty where it gave none
    kind: str  # of a connection that broke: Connect, Timeout, Interrupted, ...; empty where an answer came
    words: str  # what the store or the connection said

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed a moment later."""
        if self.needs_credentials:
            return False
        return bool(self.kind) or self.status in _PASSING_STATUS or self.code in _PASSING_CODES

    @property
    def is_unreachable(self) -> bool:
        """Whether nothing answered at the address at all: a wrong endpoint looks like this."""
        return self.kind == "Connect"

    @property
    def is_container_missing(self) -> bool:
        """Whether it is the bucket that is not there, and not the object."""
        return self.code in _NO_CONTAINER

    @property
    def needs_credentials(self) -> bool:
        """Whether the client found no credentials, and asked a machine that has no role for some."""
        return any(host in self.words for host in _METADATA_HOSTS)

    @property
    def advice(self) -> str:
        """What to check; no value of any credential."""
        return next(advice for holds, advice in self._advices() if holds)

    def _advices(self) -> tuple[tuple[bool, str], ...]:
        denied = self.status in {401, 403} or "ermission denied" in self.words
        malformed = self.status == _BAD_REQUEST and not self.is_passing
        return (
            (NO_SPACE in self.words, "Free some space and run the same command again"),
            (
                self.needs_credentials,
                "There are no credentials in the environment, and no role gives any",
            ),
            (self.is_container_missing, "Create the bucket, or correct the path"),
            (self.code in _ELSEWHERE, "Check the region (AWS_REGION)"),
            (denied, "Check the credentials in the environment and their rights to list, read and create here"),
            (malformed, "Check the path, and the credentials in the environment: is one empty?"),
            (self.is_unreachable, "Check the endpoint (AWS_ENDPOINT_URL and its likes) and the network"),
            (True, "What was committed stays; the same command goes on from there"),
        )


def understand(error: BaseException) -> Failure:
    """Read what an error of a client says."""
    text = str(error)
    head = text.partition("\n\nDebug source")[0]
    code, status, kind = (_first(pattern, text) for pattern in (_CODE, _STATUS, _KIND))
    message = _first(_MESSAGE, text)
    if code:
        words = f"{code} ({status}){': ' + message if message else ''}"
    elif kind:
        words = f"{_deepest(text)} ({head.partition(' in ')[0].rpartition(': ')[2]})"
    else:
        words = head.partition("Debug source")[0]
    words = one_line(words)
    broken = kind or ("Timeout" if isinstance(error, TimeoutError) else "")
    return Failure(int(status) if status else None, code, broken, words)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1).strip() if found else ""


def _deepest(text: str) -> str:
    """The innermost reason of a broken connection, such as `Connection refused`."""
    for pattern in (r'message: "([^"]+)"', r'error: "([^"]+)"', r"HTTP error: ([^\n]+)"):
        found = re.findall(pattern, text)
        if found:
            return found[-1]
    return "the connection failed"
