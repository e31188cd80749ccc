"""A lease on a key of the store: at most one process holds it, such as the driver of a run or of a night.

The holder rewrites a small document every few seconds by compare-and-swap, so the document's version changes while the
holder lives. A contender watches the version: a holder is dead when the version stays the same for `ttl_seconds` on the
contender's own clock. Clocks of two machines are never compared. On the holder's own machine the contender looks the
process up instead and decides at once. A lease that is absent or released is free.

A holder that cannot reach the store for `ttl_seconds` may lose the lease, so `check` then asks the store. Time passes
between `check` and a write all the same, which is why artefacts are committed by create-once.
"""

import logging
import threading
import time
import uuid
from dataclasses import replace
from types import TracebackType
from typing import Literal, NamedTuple, Self

from pipeline.errors import AlreadyExists, Busy, DataError, NotFound, StorageError
from pipeline.storage.documents import parse, to_json
from pipeline.storage.lease_owner import Holder, describe, process_state, this_process
from pipeline.storage.store import Store

logger = logging.getLogger("ddpm.storage")

LEASE = "lease.json"
TTL_SECONDS = 30.0
HEARTBEATS_PER_TTL = 6
POLLS_PER_TTL = 30
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # includes time while the machine is suspended


class _Found(NamedTuple):
    """The document at the key. holder: None when unreadable; version: None when there is no document."""

    holder: Holder | None
    version: str | None


_tokens_of_this_process: set[str] = set()


class Lease:
    """A context manager, or `acquire` and `release`; in between, a thread sends heartbeats.

    `token` identifies this holder: a worker that commits for the holder checks `held_by(store, key, token)` first.
    what: the leased thing, for messages.
    """

    def __init__(
        self, store: Store, key: str = LEASE, what: str = "this run", ttl_seconds: float = TTL_SECONDS
    ) -> None:
        self.token = uuid.uuid4().hex
        self._store, self._key, self._what = store, key, what
        self._ttl_seconds = ttl_seconds
        # No retries and a short timeout: the loop repeats heartbeats, and a slow one must not delay the next.
        timeout = min(store.config.read_timeout_seconds, ttl_seconds / 2)
        single_try = store.config.model_copy(update={"retries": 0, "read_timeout_seconds": timeout})
        self._heartbeat_store = replace(store, config=single_try)
        self._holder = this_process(self.token)
        self._version: str | None = None
        self._confirmed = -float("inf")
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # --- the holder --------------------------------------------------------------------------------------------------

    def acquire(self) -> Self:
        """Take the lease. Raises Busy while its holder lives; may be called again after Transient."""
        watched: str | None = None
        since = 0.0
        while True:
            found = _read(self._store, self._key)
            state = self._holder_state(found)
            if state == "living" or (state == "unknown" and watched not in (None, found.version)):
                raise Busy(self._busy_message(found.holder))
            if state == "unknown" and watched is None:
                watched, since = found.version, _now()
                logger.info("%s: waiting %.0f s for a heartbeat of the last holder", self._what, self._ttl_seconds)
            if state == "free" or (state == "unknown" and _now() - since > self._ttl_seconds):
                if self._take(found):
                    return self
                continue
            time.sleep(self._ttl_seconds / POLLS_PER_TTL)

    def check(self) -> None:
        """Raises Busy when another holder took the lease.

        Asks the store only when the last successful heartbeat is older than `ttl_seconds`; then raises Transient while
        the store does not answer.
        """
        if self._lost is None and _now() - self._confirmed > self._ttl_seconds:
            self._heartbeat()
        if self._lost is not None:
            raise Busy(self._lost)

    @property
    def lost(self) -> bool:
        """Whether a heartbeat found another holder. Sends no request."""
        return self._lost is not None

    def release(self) -> None:
        """Free the lease if this process still holds it. If the store does not answer, the lease expires instead."""
        self._ended.set()
        if self._thread is None:
            return
        with self._lock:  # waits for a heartbeat in progress
            _tokens_of_this_process.discard(self.token)
            self._thread = None
            try:
                if self._lost is None:
                    self._swap(self._holder.model_copy(update={"state": "released"}))
            except StorageError as error:
                logger.warning("%s: lease not released, expires in %.0f s: %s", self._what, self._ttl_seconds, error)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    # --- heartbeats --------------------------------------------------------------------------------------------------

    def _heartbeat_loop(self) -> None:
        while not self._ended.wait(self._ttl_seconds / HEARTBEATS_PER_TTL):
            try:
                self._heartbeat()
            except Exception:  # any error: the next heartbeat may succeed, and without one the lease expires
                continue
            if self._lost is not None:
                return

    def _heartbeat(self) -> None:
        """Send one heartbeat, or note that the lease is lost. Raises StorageError."""
        with self._lock:
            if self._ended.is_set() or self._lost is not None:
                return
            began = _now()  # no contender can see the new version earlier
            self._holder = self._holder.model_copy(update={"beat": self._holder.beat + 1})
            if self._swap(self._holder):
                self._confirmed = began

    def _swap(self, holder: Holder) -> bool:
        """Replace this holder's document, also after an earlier request of unknown outcome changed its version."""
        while True:
            try:
                self._version = self._heartbeat_store.compare_and_swap(self._key, to_json(holder), self._version)
                return True
            except AlreadyExists:
                found = _read(self._heartbeat_store, self._key)
            if found.version is not None and not _is_held(found.holder, self.token):
                self._lost = self._lost_message(found.holder)
                return False
            self._version = found.version  # still this holder's document, or deleted by hand

    # --- the contender -----------------------------------------------------------------------------------------------

    def _holder_state(self, found: _Found) -> Literal["free", "living", "unknown"]:
        holder, me = found.holder, self._holder
        if found.version is None or (holder is not None and holder.state == "released"):
            return "free"
        if holder is not None and holder.token == self.token:  # an earlier request of ours, whose reply was lost
            return "free"
        if holder is None or not me.boot or holder.machine != me.machine:
            return "unknown"
        if holder.process == me.process:
            return "living" if holder.token in _tokens_of_this_process else "free"
        return process_state(holder)

    def _take(self, found: _Found) -> bool:
        began = _now()
        _tokens_of_this_process.add(self.token)  # before the write, so that a reader in this process sees it living
        try:
            self._version = self._store.compare_and_swap(self._key, to_json(self._holder), found.version)
        except AlreadyExists:
            _tokens_of_this_process.discard(self.token)
            return False  # another contender was faster, or the holder lives
        except StorageError:
            _tokens_of_this_process.discard(self.token)
            raise
        self._confirmed = began
        self._thread = threading.Thread(target=self._heartbeat_loop, name="ddpm-lease", daemon=True)
        self._thread.start()
        return True

    def _busy_message(self, holder: Holder | None) -> str:
        return (
            f"{self._what} ({self._store.uri}) is in use by {describe(holder)}: let it end, or stop it; the lease of "
            f"a process that dies expires within {self._ttl_seconds:.0f} s"
        )

    def _lost_message(self, holder: Holder | None) -> str:
        return (
            f"{self._what} ({self._store.uri}) was taken over by {describe(holder)}, as no heartbeat of this process "
            f"reached the store for {self._ttl_seconds:.0f} s: this process ends, the other continues"
        )


def held_by(store: Store, key: str, token: str) -> bool:
    """Whether the lease at `key` is held under `token` now; for workers that commit for a holder. Only reads."""
    return _is_held(_read(store, key).holder, token)


def _is_held(holder: Holder | None, token: str) -> bool:
    return holder is not None and holder.state == "held" and holder.token == token


def _read(store: Store, key: str) -> _Found:
    try:
        data, version = store.read_versioned(key)
    except NotFound:
        return _Found(None, None)
    try:
        return _Found(parse(Holder, data, store.location(key)), version)
    except DataError:
        return _Found(None, version)


def _now() -> float:
    return time.clock_gettime(_CLOCK)
