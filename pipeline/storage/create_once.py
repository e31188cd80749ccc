"""Results at rest: their files, then the document that makes them exist. Each is written once and never replaced."""

import hashlib
from typing import TypeVar

from pipeline.config.base import FileEntry, Section
from pipeline.errors import AlreadyExists, NotFound
from pipeline.storage.documents import parse
from pipeline.storage.files import document
from pipeline.storage.store import Store

__all__ = ["keep_document", "keep_file", "read_document", "read_documents", "remove_artefact"]

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


def remove_artefact(folder: Store) -> int:
    """Delete a run or a samples folder; how many objects there were."""
    keys = sorted((entry.key for entry in folder.list()), key=lambda key: (not _is_document(key), key))
    for key in keys:
        folder.delete(key)
    return len(keys)


def _is_document(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith("_SUCCESS") or name.endswith(".json")
