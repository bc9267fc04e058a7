"""A request that is made again where that can help: within bounds of tries and seconds, with random pauses, counted.

Knows nothing of what is asked for. What passes is named in failures.py; everything else is raised at once.
"""

from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from obstore.exceptions import BaseError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from varve.storage.store_errors import understand

T = TypeVar("T")

# A store that throttles or restarts comes back within minutes.
_MAX_TRIES = 40
_MAX_S = 300.0
# Nothing ever answered at a wrong endpoint: no reason to wait for it at the start of a run.
_MAX_UNREACHABLE_S = 6.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0


class CrossedError(OSError):
    """A conditional write was refused, and yet there is no object: another writer's was under way and failed."""


def persist(request: Callable[[], T], *, patient: bool) -> T:
    """Make a request until it succeeds, fails for good, or the bounds are reached.

    Args:
        request: may be made any number of times.
        patient: wait for an address at which nothing answers as for any other passing failure.

    Raises:
        BaseError, OSError: the last failure.
    """

    def is_enough(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        hasty = not patient and error is not None and understand(error).is_unreachable
        spent_s = state.seconds_since_start or 0.0
        return state.attempt_number >= _MAX_TRIES or spent_s >= (_MAX_UNREACHABLE_S if hasty else _MAX_S)

    retrying = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=is_enough,
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S),
        before_sleep=_count,
        reraise=True,
    )
    return retrying(request)


_retries = 0
_lock = Lock()


def retries() -> int:
    """Requests that this process has made again so far."""
    return _retries


def _count(_state: RetryCallState) -> None:
    global _retries  # noqa: PLW0603 (a count of the whole process, whatever thread retried)
    with _lock:
        _retries += 1


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, CrossedError):
        return True
    return isinstance(error, (BaseError, OSError)) and understand(error).is_passing
