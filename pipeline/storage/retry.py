"""Retries: the one loop that repeats a failed action, and policies that choose the wait before each repetition."""

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from pipeline.errors import Transient

logger = logging.getLogger("ddpm.storage")

T = TypeVar("T")

NextDelay = Callable[[Exception], float | None]
"""A retry policy: seconds to wait after this error, or None to stop. A policy serves one call of `retry`."""

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 15.0


def retry(action: Callable[[], T], next_delay: NextDelay) -> T:
    """The result of `action`, repeated after each error until `next_delay` returns None: then raises that error.

    After Transient the outcome of a write is unknown, so `action` must be safe to repeat. A conditional write needs a
    caller that reads the object back on AlreadyExists and accepts its own content (`create_or_read` does).
    """
    while True:
        try:
            return action()
        except Exception as error:
            delay = next_delay(error)
            if delay is None:
                raise
        time.sleep(delay)


def is_transient(error: Exception) -> bool:
    return isinstance(error, Transient)


def limited(
    retries: int,
    first_seconds: float,
    longest_seconds: float = math.inf,
    repeatable: Callable[[Exception], bool] = is_transient,
) -> NextDelay:
    """Policy: at most `retries` repetitions, with exponential backoff and only for `repeatable` errors."""
    delays = islice(_backoff(first_seconds, longest_seconds), retries)
    return lambda error: next(delays, None) if repeatable(error) else None


def retry_through_outage(action: Callable[[], T], seconds: float, what: str) -> T:
    """The result of `action`, repeated on Transient for at least `seconds` from the first failure, then once more.

    Logs the beginning and the end of the outage. Raises Transient with the length of the outage and `what` was tried;
    raises other errors of `action` at once.
    """
    began: float | None = None
    delays = _backoff(FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)

    def next_delay(error: Exception) -> float | None:
        nonlocal began
        if not is_transient(error):
            return None
        now = time.monotonic()
        if began is None:
            began = now
            if seconds > 0:
                logger.warning("%s: %s; waiting up to %.0f s for the store", what, error, seconds)
        left = began + seconds - now
        if left <= 0:
            raise Transient(f"{what}: the store was away for {now - began:.0f} s: {error}") from error
        return min(left, next(delays))

    result = retry(action, next_delay)
    if began is not None:
        logger.warning("%s: the store is back after %.0f s", what, time.monotonic() - began)
    return result


def _backoff(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """Delays that double; each is spread over its upper half, so that many workers do not return at one moment."""
    delay = first_seconds
    while True:
        yield delay * secrets.SystemRandom().uniform(0.5, 1.0)
        delay = min(2 * delay, longest_seconds)
