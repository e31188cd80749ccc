"""Stops a running night from a background thread: at its time limit, on request, or after it lost the lease."""

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

POLL_SECONDS = 2.0


class NightWatch:
    """A thread that polls for a reason to stop and calls `interrupt` once; `check` polls at once and raises."""

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
        self._thread = threading.Thread(target=self._poll, name="ddpm-night", daemon=True)
        self.cause: PipelineError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()

    def check(self) -> None:
        """Raises PipelineError at the time limit, Stopped on a takeover request, Busy after losing the lease."""
        self._find_cause()
        if self.cause is not None:
            raise self.cause

    def _find_cause(self) -> None:
        if self.cause is not None:
            return
        if self._lease.lost:
            self.cause = Busy("another process took this night over: let that process finish")
        elif self._deadline is not None and self._now() >= self._deadline:
            self.cause = PipelineError("reached the time limit nightly.max_seconds: the same command continues")
        elif self._ledgers.stop_requested(self._lease.token):
            self.cause = Stopped("stopped on request of another process, which takes over (nightly.overlap replace)")

    def _poll(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with suppress(StorageError):  # the store may be back at the next poll
                self._find_cause()
            if self.cause is not None and not self._ended.is_set():
                self._interrupt()
                return


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """SIGTERM raises Stopped in the block (main thread only); training installs its own handler inside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Stopped("stopped by SIGTERM: the same command continues with the interrupted stage")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
