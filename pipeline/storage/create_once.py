"""Create an object once, or read the one that exists: the base of every commit that several writers may attempt.

`Store.create_once` alone leaves two questions open. AlreadyExists does not say who made the object: the reply to our
own earlier request may have been lost. Transient does not say whether the object was made. Both have one answer: the
content decides. The functions here return the content that exists now, and the caller compares:

    existing = create_or_read_document(store, key, ours)
    if existing != ours:
        raise ConfigError(...)    # another writer committed something else

So a repeated call is safe, and of several writers of equal content each one succeeds.

attempts: how often to send the request while the store answers Transient. Repeating is safe, because every request
has the same bytes. Use COMMIT_ATTEMPTS where giving up costs much work; the default of 1 leaves retries to the caller.
"""

from typing import TypeVar

from pipeline.config.base import FileEntry, Section
from pipeline.errors import AlreadyExists, NotFound, Transient
from pipeline.storage.documents import parse, to_json
from pipeline.storage.files import file_entry
from pipeline.storage.retry import limited, retry
from pipeline.storage.store import Store

Document = TypeVar("Document", bound=Section)

COMMIT_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.2


def try_create(store: Store, key: str, data: bytes, attempts: int = 1) -> bool:
    """Whether this call created the object; False when the object existed, even if a lost earlier request made it."""

    def create() -> bool:
        try:
            store.create_once(key, data)
        except AlreadyExists:
            return False
        return True

    return retry(create, limited(attempts - 1, FIRST_PAUSE_SECONDS))


def create_or_read(store: Store, key: str, data: bytes, attempts: int = 1) -> bytes:
    """The bytes that exist at `key` now: `data`, or those of an earlier writer.

    Raises Transient when the object exists and vanishes before it is read.
    """

    def create() -> bytes:
        if try_create(store, key, data):
            return data
        try:
            return store.read(key)
        except NotFound as error:
            raise Transient(f"{store.location(key)} exists and cannot be read: try again") from error

    return retry(create, limited(attempts - 1, FIRST_PAUSE_SECONDS))


def create_or_read_document(store: Store, key: str, ours: Document, attempts: int = 1) -> Document:
    """The document that exists at `key` now: `ours`, or that of an earlier writer. Raises DataError for other kinds."""
    data = to_json(ours)
    existing = create_or_read(store, key, data, attempts)
    return ours if existing == data else parse(type(ours), existing, store.location(key))


def create_or_read_file(store: Store, key: str, data: bytes) -> FileEntry:
    """The entry of the file that exists at `key` now; an earlier file stays, since a document may already name it."""
    return file_entry(key, create_or_read(store, key, data))
