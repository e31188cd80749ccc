"""JSON documents at rest (plans, markers, manifests, records): pydantic models to bytes, and read back from a store.

An artefact exists when its manifest does. A manifest holds no time, host or credential, so equal inputs give equal
bytes and equal digests.
"""

import json
from typing import TypeVar

from pydantic import ValidationError

from pipeline.config.base import Section
from pipeline.errors import DataError, NotFound
from pipeline.storage.store import Store

T = TypeVar("T", bound=Section)


def to_json(document: Section) -> bytes:
    """The document as indented JSON, keys in the order of the model's fields."""
    return (json.dumps(document.model_dump(mode="json"), indent=1) + "\n").encode()


def parse(kind: type[T], data: bytes, where: str) -> T:
    """A document from its bytes. Raises DataError naming `where` and the first invalid field."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{where} is not a {kind.__name__}: {field}: {first['msg']}") from error


def read_document(store: Store, key: str, kind: type[T]) -> T:
    """The document at `key`. Raises NotFound, and DataError when it is not a `kind`."""
    return parse(kind, store.read(key), store.location(key))


def find_document(store: Store, key: str, kind: type[T]) -> T | None:
    """The document at `key`, or None when there is none. Raises DataError when it is not a `kind`."""
    try:
        return read_document(store, key, kind)
    except NotFound:
        return None


def read_documents(store: Store, prefix: str, kind: type[T]) -> list[T]:
    """Every document (*.json) under a prefix, in order of key."""
    return [read_document(store, entry.key, kind) for entry in store.list(prefix) if entry.key.endswith(".json")]
