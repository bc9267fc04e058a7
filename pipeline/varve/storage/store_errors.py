"""What an error of a store means: the store's message, whether a retry can help, and what to check.

Clients raise one exception class for most responses, so the HTTP status, the code in the response body and the kind of
a connection error are parsed from the text.
"""

import re
from dataclasses import dataclass

from varve.errors import one_line

NO_SPACE = "No space left on device"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
# The innermost reason of a connection error, such as `Connection refused`.
_REASONS = (re.compile(r'message: "([^"]+)"'), re.compile(r'error: "([^"]+)"'), re.compile(r"HTTP error: ([^\n]+)"))

# 408: timeout, 429: too many requests, 5xx: server errors. 501 and 505 are permanent.
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_BAD_REQUEST = 400
# Codes that come with another status: S3 answers 400 to a slow upload and 409 to concurrent conditional writes.
_TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "ServerBusy"}
    | {"ConditionalRequestConflict", "OperationTimedOut", "TooManyRequests", "ThrottlingException"}
)
_MISSING_CONTAINER = frozenset({"NoSuchBucket", "ContainerNotFound", "ResourceNotFound"})
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
# Codes of a store without room: the quota of Ceph and of MinIO, the disks of MinIO.
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"})
_INSUFFICIENT_STORAGE = 507
_WRONG_CLOCK = "RequestTimeTooSkewed"
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class StoreError:
    """The parsed error of one request."""

    status: int | None  # of the HTTP response; None without a response
    code: str  # from the response body, such as SlowDown; empty if it has none
    kind: str  # of a connection error: Connect, Timeout, Interrupted, ...; empty with a response
    message: str  # of the store or the connection

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.needs_credentials:
            return False
        return bool(self.kind) or self.status in _TRANSIENT_STATUS or self.code in _TRANSIENT_CODES

    @property
    def is_unreachable(self) -> bool:
        """Whether no connection was possible, as with a wrong endpoint."""
        return self.kind == "Connect"

    @property
    def is_container_missing(self) -> bool:
        """Whether the bucket does not exist, not only the object."""
        return self.code in _MISSING_CONTAINER

    @property
    def needs_credentials(self) -> bool:
        """Whether the client found no credentials and the machine has no role."""
        return any(host in self.message for host in _METADATA_HOSTS)

    @property
    def is_full(self) -> bool:
        """Whether the store has no room."""
        return self.code in _FULL_CODES or self.status == _INSUFFICIENT_STORAGE

    @property
    def advice(self) -> str:
        """What to check. Contains no credentials."""
        is_denied = self.status in {401, 403} or "ermission denied" in self.message
        is_malformed = self.status == _BAD_REQUEST and not self.is_transient
        advices = (
            (NO_SPACE in self.message, "Free some space and run the same command again"),
            (self.is_full, "Free some space, or raise the quota of the bucket, and run the same command again"),
            (self.needs_credentials, "There are no credentials in the environment, and the machine has no role"),
            (self.is_container_missing, "Create the bucket, or correct the path"),
            (self.code in _WRONG_REGION, "Check the region (AWS_REGION)"),
            (self.code == _WRONG_CLOCK, "Set the clock of this machine, then run the same command to resume"),
            (is_denied, "Check the credentials in the environment and their rights to list, read and create here"),
            (is_malformed, "Check the path, and the credentials in the environment: is one empty?"),
            (
                self.is_unreachable,
                "Check the endpoint (AWS_ENDPOINT_URL or your store's variable) and the network",
            ),
            (True, "Committed parts stay; run the same command to resume"),
        )
        return next(advice for applies, advice in advices if applies)


def parse_error(error: BaseException) -> StoreError:
    """Parse an exception of a client."""
    text = str(error)
    head = text.partition("\n\nDebug source")[0]
    code, status, kind = (_first(pattern, text) for pattern in (_CODE, _STATUS, _KIND))
    if code:
        detail = _first(_MESSAGE, text)
        message = f"{code} ({status}){': ' + detail if detail else ''}"
    elif kind:
        reasons = next(filter(None, (pattern.findall(text) for pattern in _REASONS)), ["the connection failed"])
        message = f"{reasons[-1]} ({head.partition(' in ')[0].rpartition(': ')[2]})"
    else:
        message = head.partition("Debug source")[0]
    kind = kind or ("Timeout" if isinstance(error, TimeoutError) else "")
    return StoreError(int(status) if status else None, code, kind, one_line(message, _SHOWN_CHARACTERS))


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1).strip() if match else ""
