"""Retries of requests: a bounded number of attempts and seconds, random exponential pauses, and a count.

`store_errors` decides which errors are transient; all others are raised at once.
"""

from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from obstore.exceptions import BaseError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from varve.storage.store_errors import parse_error

T = TypeVar("T")

# A store that throttles or restarts is available again within minutes.
_MAX_ATTEMPTS = 40
_MAX_S = 300.0
# At the start of a run an unreachable endpoint is probably a wrong one.
_MAX_UNREACHABLE_S = 6.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0


class ConcurrentWriteError(OSError):
    """A conditional write was rejected because of a concurrent write, which then failed: there is no object."""


def with_retries(request: Callable[[], T], *, patient: bool) -> T:
    """Repeat a request until it succeeds, fails permanently, or reaches the bounds.

    Args:
        request: idempotent.
        patient: retry an unreachable endpoint as long as after other transient errors.

    Raises:
        BaseError, OSError: the last failure.
    """

    def should_stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        is_impatient = not patient and error is not None and parse_error(error).is_unreachable
        max_s = _MAX_UNREACHABLE_S if is_impatient else _MAX_S
        return state.attempt_number >= _MAX_ATTEMPTS or (state.seconds_since_start or 0.0) >= max_s

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=should_stop,
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        before_sleep=_count,
        reraise=True,
    )
    return retrying(request)


_retries = 0
_lock = Lock()


def retries() -> int:
    """Number of repeated requests of this process so far."""
    return _retries


def _count(_state: RetryCallState) -> None:
    global _retries  # noqa: PLW0603 (counts for the whole process, from any thread)
    with _lock:
        _retries += 1


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ConcurrentWriteError):
        return True
    return isinstance(error, (BaseError, OSError)) and parse_error(error).is_transient
