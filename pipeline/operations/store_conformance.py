"""Whether a store keeps the promises that everything here is built on: asked of the store itself, with small objects.

Each question leaves nothing behind. Raises StorageError, whose message says what to do, when the store cannot be asked.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from pipeline.errors import AlreadyExists, StorageError
from pipeline.operations.diagnosis import Finding, clock, latency
from pipeline.storage.store import Store

__all__ = ["access", "clock_skew", "create_once", "listing", "round_trip"]

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
    """Writing, reading, listing and deleting are allowed."""
    with _probe(store) as key:
        store.put(key, b"x")
        if store.read(key) != b"x":
            return Finding("fail", "store", f"{store.uri} returned other bytes than were written: use another store")
        next(store.list(key), None)
        store.delete(key)
    return Finding("ok", "store", f"{store.uri} may be written, read, listed and deleted from")


def create_once(store: Store) -> Finding:
    """Of several writers at once exactly one creates the object, the others are told, and a later one too."""
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
        return Finding("ok", "create-once", f"one of {WRITERS} writers at once was first")
    lost = f"{len(winners) + late} of {WRITERS + 1} writers were told that they were first"
    return Finding("fail", "create-once", f"{lost}: samples could be lost; use a store with conditional writes")


def listing(store: Store) -> Finding:
    """What was written is listed at once, and what was deleted is not."""
    with _probe(store) as key:
        store.put(key, b"x")
        written = [entry.key for entry in store.list(key)]
        store.delete(key)
        deleted = [entry.key for entry in store.list(key)]
    if written == [key] and deleted == []:
        return Finding("ok", "listing", "shows writes and deletions at once")
    late = "a new object is missing" if written != [key] else "a deleted object is still there"
    return Finding("fail", "listing", f"{late}: use a store with consistent listings, without a cache in between")


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
    """The time that the store gives a new object, beside this machine's; a second is what some stores round to."""
    with _probe(store) as key:
        before = now() - 1
        store.put(key, b"x")
        after = now() + 1
        changed = store.pa_fs.get_file_info(store.path(key)).mtime.timestamp()
    return clock(min(changed - before, 0.0) + max(changed - after, 0.0))
