"""Ends a night from beside it: its time is over, another process is to take over, or already did."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Self

from pipeline.errors import Busy, PipelineError, Stopped, StorageError
from pipeline.nightly.ledger_store import Ledgers
from pipeline.storage.lease import Lease

__all__ = ["NightWatch", "stoppable"]

LOOK_SECONDS = 2.0


class NightWatch:
    """A thread that looks every few seconds and calls `interrupt` once; `look` does the same at once, and raises."""

    def __init__(
        self,
        ledgers: Ledgers,
        lease: Lease,
        deadline: datetime | None,
        now: Callable[[], datetime],
        interrupt: Callable[[], None],
    ) -> None:
        self._ledgers, self._lease, self._deadline = ledgers, lease, deadline
        self._now, self._interrupt = now, interrupt
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ddpm-night", daemon=True)
        self.cause: PipelineError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()

    def look(self) -> None:
        """Raises PipelineError after the time limit, Stopped when another process is to take over, Busy when it did."""
        self._find()
        if self.cause is not None:
            raise self.cause

    def _find(self) -> None:
        if self.cause is not None:
            return
        if self._lease.lost:
            self.cause = Busy("another process took this night over: let that one go on")
        elif self._deadline is not None and self._now() >= self._deadline:
            self.cause = PipelineError("the time limit nightly.max_seconds is over: the same command goes on from here")
        elif self._ledgers.is_asked_to_stop(self._lease.token):
            self.cause = Stopped("asked to stop by another process, which takes over (nightly.overlap replace)")

    def _keep(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with suppress(StorageError):  # a store that is away is looked at again
                self._find()
            if self.cause is not None and not self._ended.is_set():
                self._interrupt()
                return


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Stopped in the block, when on the main thread; training inside has its own, kinder answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Stopped("stopped by SIGTERM: the same command goes on with the stage that was under way")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
