"""Checks that a store keeps the guarantees of the commit protocol, by experiments with small objects.

Checks: access, atomic create-once, consistent listing, latency, clock. Each deletes its objects and raises StorageError
when the store is unreachable.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from pipeline.errors import AlreadyExists, StorageError
from pipeline.operations.diagnosis import Finding, clock, latency
from pipeline.storage.store import Store

WRITERS = 8
ROUND_TRIPS = 5


@contextmanager
def _probe(store: Store) -> Iterator[str]:
    key = f"doctor-{uuid.uuid4().hex}"
    try:
        yield key
    finally:
        with suppress(StorageError):
            store.delete(key)


def access(store: Store) -> Finding:
    """Write, read, list and delete are permitted."""
    with _probe(store) as key:
        store.put(key, b"x")
        if store.read(key) != b"x":
            return Finding(
                "fail", "store", f"{store.uri} returned other bytes than were written: this store cannot be used"
            )
        next(store.list(key), None)
        store.delete(key)
    return Finding("ok", "store", f"{store.uri} permits write, read, list and delete")


def create_once(store: Store) -> Finding:
    """Of concurrent writers exactly one creates the object; all others, and a later one, get AlreadyExists."""
    with _probe(store) as key:

        def create(writer: int) -> bool:
            try:
                store.create_once(key, str(writer).encode())
            except AlreadyExists:
                return False
            return True

        with ThreadPoolExecutor(WRITERS) as pool:
            created = list(pool.map(create, range(WRITERS)))
        winners = [writer for writer, won in enumerate(created) if won]
        kept = store.read(key)
        late = create(WRITERS)
    if len(winners) == 1 and kept == str(winners[0]).encode() and not late:
        return Finding("ok", "create-once", f"exactly one of {WRITERS} concurrent writers created the object")
    lost = f"the store reported success to {len(winners) + late} of {WRITERS + 1} writers"
    return Finding("fail", "create-once", f"{lost}: samples could be lost; use a store with conditional writes")


def listing(store: Store) -> Finding:
    """A new object is listed at once, a deleted one no longer."""
    with _probe(store) as key:
        store.put(key, b"x")
        written = [entry.key for entry in store.list(key)]
        store.delete(key)
        deleted = [entry.key for entry in store.list(key)]
    if written == [key] and deleted == []:
        return Finding("ok", "listing", "shows new and deleted objects at once")
    late = "a new object is missing" if written != [key] else "a deleted object is still listed"
    return Finding("fail", "listing", f"{late}: use a store with consistent listings and no cache in front")


def round_trip(store: Store) -> Finding:
    """Median seconds of one small write and read."""
    seconds = []
    with _probe(store) as key:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            store.put(key, bytes(4096))
            store.read(key)
            seconds.append(time.perf_counter() - began)
    return latency(sorted(seconds)[ROUND_TRIPS // 2])


def clock_skew(store: Store, now: Callable[[], float] = time.time) -> Finding:
    """Modification time of a new object against this machine's clock, within 1 s: some stores round to seconds."""
    with _probe(store) as key:
        before = now() - 1
        store.put(key, b"x")
        after = now() + 1
        changed = store.pa_fs.get_file_info(store.path(key)).mtime.timestamp()
    return clock(min(changed - before, 0.0) + max(changed - after, 0.0))
