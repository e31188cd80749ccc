"""Results at rest: their files, then the document that makes them exist. Each is written once and never replaced."""

import hashlib
from typing import TypeVar

from pipeline.config import Section
from pipeline.errors import AlreadyExists, NotFound
from pipeline.manifests import FileEntry, parse
from pipeline.storage.shards import document
from pipeline.storage.store import Store

__all__ = ["keep_document", "keep_file", "read_document", "read_documents"]

Document = TypeVar("Document", bound=Section)


def keep_file(store: Store, key: str, data: bytes) -> FileEntry:
    """The entry of what is there now: ours, or what was there before, since a document may already name it."""
    try:
        store.create_once(key, data)
    except AlreadyExists:
        data = store.read(key)
    return FileEntry(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def keep_document(store: Store, key: str, ours: Document) -> Document:
    """The document that exists now: ours, or that of a faster writer of the same."""
    try:
        store.create_once(key, document(ours))
    except AlreadyExists:
        return parse(type(ours), store.read(key), store.location(key))
    return ours


def read_document(store: Store, key: str, kind: type[Document]) -> Document | None:
    """One document, or None. Raises DataError when it is no `kind`."""
    try:
        return parse(kind, store.read(key), store.location(key))
    except NotFound:
        return None


def read_documents(store: Store, prefix: str, kind: type[Document]) -> list[Document]:
    """Every document under a prefix, in order of key."""
    keys = [entry.key for entry in store.list(prefix) if entry.key.endswith(".json")]
    return [parse(kind, store.read(key), store.location(key)) for key in keys]
