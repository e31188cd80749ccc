"""Waiting for a store that is away for a while."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import Transient

__all__ = ["patiently"]

logger = logging.getLogger("ddpm.storage")

T = TypeVar("T")

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 15.0


def patiently(action: Callable[[], T], seconds: float, what: str) -> T:
    """The result of `action`, repeated on Transient for at least `seconds` from the first failure, then once more.

    Raises Transient saying how long `what` was tried, and whatever else `action` raises at once. After Transient the
    outcome of a write is unknown: `action` must be one that may be repeated, so a conditional write needs a caller
    that reads back on AlreadyExists and accepts its own content (`write_checkpoint`, `Lease.acquire` do).
    """
    began: float | None = None
    delay = FIRST_DELAY_SECONDS
    while True:
        try:
            result = action()
        except Transient as error:
            now = time.monotonic()
            if began is None:
                began = now
                if seconds > 0:
                    logger.warning("%s: %s; waiting up to %.0f s for the store", what, error, seconds)
            left = began + seconds - now
            if left <= 0:
                raise Transient(f"{what}: the store was away for {now - began:.0f} s: {error}") from error
            time.sleep(min(left, _spread(delay)))
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
            continue
        if began is not None:
            logger.warning("%s: the store is back after %.0f s", what, time.monotonic() - began)
        return result


def _spread(delay: float) -> float:
    """Somewhere in the upper half, so that many workers do not return together."""
    return delay * secrets.SystemRandom().uniform(0.5, 1.0)
