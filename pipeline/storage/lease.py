"""One holder at a time for a key: a run has one driver, a night one process.

The holder rewrites a small document every few seconds by compare-and-swap, so its version changes while it lives. No
clock of one machine is compared with that of another: a contender watches the version, and what does not change for
`ttl_seconds` on the contender's own clock is dead. On the holder's own machine the process itself is looked up, so a
dead holder is followed at once and a living one refused at once. Absent or released is free.

A holder that could not reach the store for longer may be dead to others, so `check` asks the store then; between
that and a write there is still a gap, which is why artefacts are committed by create-once.
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
from pipeline.storage.lease_owner import Holder, described, process_state, this_process
from pipeline.storage.store import Store

__all__ = ["LEASE", "TTL_SECONDS", "Lease", "held_by"]

logger = logging.getLogger("ddpm.storage")

LEASE = "lease.json"
TTL_SECONDS = 30.0
BEATS_A_TTL = 6
LOOKS_A_TTL = 30
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine is suspended


class _Found(NamedTuple):
    """What is at the key: no holder when the document cannot be read, no version when there is none."""

    holder: Holder | None
    version: str | None


_tokens_of_this_process: set[str] = set()


class Lease:
    """Use it as a context manager, or `acquire` and `release`; a thread keeps it in between.

    `token` names this holder: another process may ask `held_by(store, key, token)` before it commits on its behalf.
    """

    def __init__(
        self, store: Store, key: str = LEASE, what: str = "this run", ttl_seconds: float = TTL_SECONDS
    ) -> None:
        self.token = uuid.uuid4().hex
        self._store, self._key, self._what = store, key, what
        self._ttl_seconds = ttl_seconds
        # A heartbeat is repeated by its own loop, and one that hangs must not take the time of those after it.
        patience = min(store.config.read_timeout_seconds, ttl_seconds / 2)
        hasty = store.config.model_copy(update={"retries": 0, "read_timeout_seconds": patience})
        self._hasty_store = replace(store, config=hasty)
        self._holder = this_process(self.token)
        self._version: str | None = None
        self._confirmed = -float("inf")
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # --- the holder --------------------------------------------------------------------------------------------------

    def acquire(self) -> Self:
        """Take the lease. Raises Busy when its holder lives; after Transient it may be called again."""
        watched: str | None = None
        since = 0.0
        while True:
            found = _read(self._store, self._key)
            state = self._judged(found)
            if state == "living" or (state == "unknown" and watched not in (None, found.version)):
                raise Busy(self._refusal(found.holder))
            if state == "unknown" and watched is None:
                watched, since = found.version, _now()
                logger.info("%s: watching for %.0f s whether its last holder lives", self._what, self._ttl_seconds)
            if state == "free" or (state == "unknown" and _now() - since > self._ttl_seconds):
                if self._take(found):
                    return self
                continue
            time.sleep(self._ttl_seconds / LOOKS_A_TTL)

    def check(self) -> None:
        """Raises Busy when another holder took the lease. Quick, but asks the store when no heartbeat came through for
        `ttl_seconds`; then raises Transient while the store is away."""
        if self._lost is None and _now() - self._confirmed > self._ttl_seconds:
            self._beat()
        if self._lost is not None:
            raise Busy(self._lost)

    @property
    def lost(self) -> bool:
        """Whether a heartbeat found another holder; asks nobody."""
        return self._lost is not None

    def release(self) -> None:
        """Let it go if it is still ours; a store that is away only costs the next holder the wait."""
        self._ended.set()
        if self._thread is None:
            return
        with self._lock:  # after a heartbeat that is under way
            _tokens_of_this_process.discard(self.token)
            self._thread = None
            try:
                if self._lost is None:
                    self._swap(self._holder.model_copy(update={"state": "released"}))
            except StorageError as error:
                logger.warning("%s: its lease ends by itself in %.0f s, as %s", self._what, self._ttl_seconds, error)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    # --- heartbeats --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_seconds / BEATS_A_TTL):
            try:
                self._beat()
            except Exception:  # whatever it was: without a further heartbeat the lease would be lost for sure
                continue
            if self._lost is not None:
                return

    def _beat(self) -> None:
        """One heartbeat, or the news that the lease is lost. Raises StorageError."""
        with self._lock:
            if self._ended.is_set() or self._lost is not None:
                return
            began = _now()  # nobody can have watched the new version before
            self._holder = self._holder.model_copy(update={"beat": self._holder.beat + 1})
            if self._swap(self._holder):
                self._confirmed = began

    def _swap(self, holder: Holder) -> bool:
        """Replace our own document, wherever an earlier request with an unknown outcome left it."""
        while True:
            try:
                self._version = self._hasty_store.compare_and_swap(self._key, to_json(holder), self._version)
                return True
            except AlreadyExists:
                found = _read(self._hasty_store, self._key)
            if found.version is not None and not _is_held(found.holder, self.token):
                self._lost = self._taken(found.holder)
                return False
            self._version = found.version  # ours after all, or removed by hand, which gives it to nobody

    # --- the contender -----------------------------------------------------------------------------------------------

    def _judged(self, found: _Found) -> Literal["free", "living", "unknown"]:
        holder, me = found.holder, self._holder
        if found.version is None or (holder is not None and holder.state == "released"):
            return "free"
        if holder is not None and holder.token == self.token:  # an earlier call, whose reply was lost
            return "free"
        if holder is None or not me.boot or holder.machine != me.machine:
            return "unknown"
        if holder.process == me.process:
            return "living" if holder.token in _tokens_of_this_process else "free"
        return process_state(holder)

    def _take(self, found: _Found) -> bool:
        began = _now()
        _tokens_of_this_process.add(self.token)  # first: whoever reads the document must find it living
        try:
            self._version = self._store.compare_and_swap(self._key, to_json(self._holder), found.version)
        except AlreadyExists:
            _tokens_of_this_process.discard(self.token)
            return False  # another contender, or a holder that lives
        except StorageError:
            _tokens_of_this_process.discard(self.token)
            raise
        self._confirmed = began
        self._thread = threading.Thread(target=self._keep, name="ddpm-lease", daemon=True)
        self._thread.start()
        return True

    def _refusal(self, holder: Holder | None) -> str:
        return (
            f"{self._what} ({self._store.uri}) is in use by {described(holder)}: let it end, or stop it; the lease of "
            f"a process that dies ends by itself within {self._ttl_seconds:.0f} s"
        )

    def _taken(self, holder: Holder | None) -> str:
        return (
            f"{self._what} ({self._store.uri}) was taken over by {described(holder)}, as no heartbeat of this process "
            f"reached the store for {self._ttl_seconds:.0f} s: let that one go on"
        )


def held_by(store: Store, key: str, token: str) -> bool:
    """Whether the lease at `key` is held under `token` now; for those who commit on a holder's behalf. Only reads."""
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
