"""The object store: all code opens URIs (local paths, s3://, memory://) through `resolve` and `Store`.

A `Store` is a value (URI + settings): it may be pickled to any process, and each process builds its own clients.
The three backends (`local`, `s3`, `memory`) make the same promises:

- readers see an object whole or not at all; `put` replaces an object in one step;
- of all writers that `create_once` a key exactly one succeeds;
- listings show a written object at once, in key order (by code points, "/" included).

A failure raises AlreadyExists, NotFound, MissingBucket, Denied or Transient, or else a plain StorageError; the message
names the object. `pa_fs` is for reads and for hand-offs to Ray and Arrow. Never stream to a final key through `pa_fs`:
an exception inside `with open_output_stream(...)` commits the bytes written so far. Build the bytes, then `put`.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast
from urllib.parse import unquote, urlsplit

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, NotFound, StorageError
from pipeline.storage.credentials import without_credentials

Kind = Literal["local", "s3", "memory"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")


class Entry(NamedTuple):
    """One listed object: key relative to the listed root, size in bytes."""

    key: str
    size: int


class VersionedEntry(NamedTuple):
    """One listed object with a version that changes when its bytes change: the ETag, or the modification time.

    A name that is not a readable file (a broken link, a device) has size -1 and the reason as `version`.
    """

    key: str
    size: int
    version: str


class Backend(Protocol):
    """The interface of a storage backend. `path` is a full path without scheme ("bucket/prefix/key")."""

    @property
    def pa_fs(self) -> Any: ...
    def read_versioned(self, path: str) -> tuple[bytes, str]: ...
    def read_range(self, path: str, start: int, count: int) -> bytes: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create_once(self, path: str, data: bytes) -> str: ...
    def compare_and_swap(self, path: str, data: bytes, expected: str) -> str: ...
    def size(self, path: str) -> int | None: ...
    def list(self, prefix: str) -> Iterator[tuple[str, int]]: ...
    def list_versioned(self, prefix: str) -> Iterator[tuple[str, int, str]]: ...
    def delete(self, path: str) -> None: ...


@dataclass(frozen=True)
class Store:
    """A storage root, built by `resolve`. Holds no client and no credential, so it may be pickled anywhere."""

    uri: str
    config: StorageConfig

    @property
    def kind(self) -> Kind:
        scheme = self.uri.partition("://")[0] if "://" in self.uri else "local"
        return cast(Kind, scheme)

    @property
    def pa_fs(self) -> Any:
        """The pyarrow filesystem for `path(key)`. Credentials come from the process that uses it."""
        return self._backend.pa_fs

    @property
    def _backend(self) -> Backend:
        # Imported on use, so that a process with local files only does not load the S3 client.
        if self.kind == "s3":
            from pipeline.storage import s3

            return s3.backend_for(self.config)
        if self.kind == "memory":
            from pipeline.storage import memory

            return memory.BACKEND
        from pipeline.storage import local

        return local.BACKEND

    def path(self, key: str = "") -> str:
        """Path of `key` (or of the root) for `pa_fs`: no scheme."""
        return self._object(key) if key else self._root

    @property
    def _root(self) -> str:
        return self.uri.partition("://")[2] if "://" in self.uri else self.uri

    def _object(self, key: str) -> str:
        return _join(self._root, _checked(key, self.uri))

    def location(self, key: str = "") -> str:
        """URI of `key` (or of the root), for messages and manifests."""
        return _join(self.uri, key) if key else self.uri

    def child(self, *parts: str) -> "Store":
        """The store rooted at a sub-folder of this one."""
        key = "/".join(part.rstrip("/") for part in parts)
        return Store(_join(self.uri, _checked(key, self.uri)), self.config)

    def read(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The whole object, and its version for `compare_and_swap`. Equal bytes may have equal versions."""
        return self._backend.read_versioned(self._object(key))

    def read_range(self, key: str, start: int, count: int) -> bytes:
        """Up to `count` > 0 bytes from `start`, fewer only at the end of the object. Raises NotFound."""
        return self._backend.read_range(self._object(key), start, count)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace the object in one step; readers see the old or the new bytes, whole."""
        self._backend.put(self._object(key), data)

    def create_once(self, key: str, data: bytes) -> None:
        """Write the object if there is none, else raise AlreadyExists.

        AlreadyExists means that the object exists, not that another writer made it: the reply to an earlier request of
        this writer may be lost. After Transient the outcome is unknown, and the request may take effect later. In both
        cases read the object back and compare; `pipeline.storage.create_once` does that. Retrying with the same bytes
        is safe.
        """
        self._backend.create_once(self._object(key), data)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace the object if its version is still `expected` (None: the object must not exist); the new version.

        Raises AlreadyExists when another writer created, changed or deleted the object. After Transient the outcome is
        unknown: read the object back.
        """
        if expected is None:
            return self._backend.create_once(self._object(key), data)
        return self._backend.compare_and_swap(self._object(key), data, expected)

    def exists(self, key: str) -> bool:
        """Whether there is an object at `key`; a folder is not an object. Raises MissingBucket."""
        return self._backend.size(self._object(key)) is not None

    def size(self, key: str) -> int:
        """Size of the object in bytes. Raises NotFound."""
        size = self._backend.size(self._object(key))
        if size is None:
            raise NotFound(f"no object {self.location(key)}: check the URI")
        return size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object whose key begins with `prefix`, in key order, page by page (a folder: end it with "/")."""
        root = _join(self._root, "")
        if prefix:
            _checked(prefix.removesuffix("/"), self.uri)
        for path, size in self._backend.list(root + prefix):
            yield Entry(path[len(root) :], size)

    def list_versioned(self, prefix: str = "") -> Iterator[VersionedEntry]:
        """`list` with a version per object; also yields names that are not readable files."""
        root = _join(self._root, "")
        if prefix:
            _checked(prefix.removesuffix("/"), self.uri)
        for path, size, version in self._backend.list_versioned(root + prefix):
            yield VersionedEntry(path[len(root) :], size, version)

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        self._backend.delete(self._object(key))

    def read_json(self, key: str) -> Any:
        """The object parsed as JSON. Raises NotFound, DataError."""
        try:
            return json.loads(self.read(key))
        except ValueError as error:
            raise DataError(f"{self.location(key)} is not valid JSON: {error}") from error

    def put_json(self, key: str, value: Any) -> None:
        """`put` of canonical JSON: sorted keys, so equal values give equal bytes."""
        self.put(key, _json_bytes(value))

    def create_json(self, key: str, value: Any) -> None:
        """`create_once` of canonical JSON."""
        self.create_once(key, _json_bytes(value))


def resolve(uri: str, config: StorageConfig) -> Store:
    """The store at `uri`: a local path, file:///path, s3://bucket/prefix or memory://name (one process, for tests).

    Opens nothing. Raises ConfigError naming the URI and the remedy.
    """
    scheme = match[1].lower() if (match := _SCHEME.match(uri)) else ""
    if scheme in ("", "file"):
        return Store(_local_root(uri) if scheme else _absolute(uri), config)
    if scheme not in ("s3", "memory") or not uri.lower().startswith(f"{scheme}://"):
        raise ConfigError(
            f"cannot use '{without_credentials(uri)}': give a local path, file:///path or s3://bucket/prefix"
        )
    root, _, prefix = uri[len(scheme) + 3 :].partition("/")
    if "@" in root:
        raise ConfigError(
            f"{scheme}://... must not hold credentials: put them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not _BUCKET.match(root) and not (scheme == "memory" and root):
        raise ConfigError(f"'{uri}' has no valid bucket name: use s3://bucket/prefix (lower case, 3 to 63 characters)")
    if scheme == "s3":
        _check_endpoint(config.endpoint)
    prefix = prefix.strip("/")
    try:
        return Store(_join(f"{scheme}://{root}", _checked(prefix, uri)) if prefix else f"{scheme}://{root}", config)
    except StorageError as error:
        raise ConfigError(str(error)) from error


def _local_root(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not uri[5:].startswith("//") or not parts.path.startswith("/"):
        raise ConfigError(f"'{uri}' must be file:///absolute/path")
    return _absolute(unquote(uri.partition("://")[2].removeprefix("localhost")))


def _absolute(path: str) -> str:
    if not path or "\0" in path:
        raise ConfigError("an empty storage location: give a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(path))


def _check_endpoint(endpoint: str | None) -> None:
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise ConfigError("storage.endpoint must not hold credentials: put them in the AWS_* environment variables")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"storage.endpoint '{endpoint}' must begin with https:// (or http:// on purpose)")


def _checked(key: str, root: str) -> str:
    """`key`, if it stays inside the root. Keys may come from an untrusted manifest, so ".." is refused."""
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise StorageError(f"bad key {key!r} under {root}: it needs plain parts joined by '/'")
    return key


def _join(root: str, key: str) -> str:
    return root + key if root.endswith("/") else f"{root}/{key}"


def _json_bytes(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
