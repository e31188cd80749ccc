"""Bytes out of a store for sources: a refusal where one file is at fault, an error where the store is."""

import errno
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from pipeline.errors import Denied, MissingBucket, NotFound, StorageError
from pipeline.images.file_types import HEAD_BYTES
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.source import SourceFile
from pipeline.storage.store import Store

__all__ = ["UNKNOWN_SIZE", "head_of", "heads_of", "open_file", "read_images", "refused"]

_BUFFER_BYTES: Final = {"s3": 4 * 2**20}
_LOCAL_BUFFER_BYTES: Final = 2**18
UNKNOWN_SIZE: Final = -2
"""The size of a file that nobody listed."""
_REQUESTS_AT_ONCE: Final = 8
"""An object store answers after a while: small objects are asked for ahead."""


def refused(store: Store, error: StorageError) -> Reject:
    """What a failed read means for the file. Raises the error when it is the store that fails, not the file."""
    if isinstance(error, NotFound):
        return Reject("missing", str(error))
    if store.kind != "local":
        if not isinstance(error, Denied):
            raise error
        next(store.list(), None)  # raises Denied as well when it is the credentials, which would refuse everything
    return Reject("unreadable", str(error))


def read_images(files: Iterable[tuple[Store, SourceFile]], max_bytes: int) -> Iterator[bytes | Reject]:
    """The bytes of every file in order, or why not; up to eight of an object store are read ahead."""
    pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE)  # starts its threads when they are needed
    waiting: list[Future[bytes | Reject]] = []
    try:
        for store, file in files:
            if store.kind != "s3":
                while waiting:
                    yield waiting.pop(0).result()
                yield _read(store, file, max_bytes)
                continue
            waiting.append(pool.submit(_read, store, file, max_bytes))
            if len(waiting) >= _REQUESTS_AT_ONCE:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(store: Store, file: SourceFile, max_bytes: int) -> bytes | Reject:
    if file.size == UNKNOWN_SIZE:
        return _read_unlisted(store, file.key, max_bytes)
    if file.size < 0:
        return Reject("unsafe-member", f"{store.location(file.key)} is {file.version}")
    if file.size > max_bytes:
        return Reject("too-many-bytes", f"{file.size} bytes are more than {max_bytes}")
    try:
        return store.read(file.key)
    except StorageError as error:
        return refused(store, error)


def _read_unlisted(store: Store, key: str, max_bytes: int) -> bytes | Reject:
    try:
        if store.kind == "local":
            store.size(key)  # raises NotFound for pipes and devices, whose reading might never end
        data = store.read_range(key, 0, max_bytes + 1)
    except MissingBucket as error:  # named by one line of a list, it is no loss of the source
        return Reject("missing", str(error))
    except StorageError as error:
        return refused(store, error)
    return data if len(data) <= max_bytes else Reject("too-many-bytes", f"more than {max_bytes} bytes")


def head_of(store: Store, file: SourceFile) -> bytes:
    """The first bytes of a file; none when it cannot be read. Raises StorageError when the store fails."""
    if file.size <= 0:
        return b""
    try:
        return store.read_range(file.key, 0, HEAD_BYTES)
    except StorageError as error:
        refused(store, error)
        return b""


def heads_of(store: Store, files: list[SourceFile]) -> list[bytes]:
    """`head_of` of each file."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(lambda file: head_of(store, file), files))


def open_file(store: Store, file: SourceFile) -> io.BufferedReader:
    """The file for random access, buffered. What the store raises while it is read comes through as StorageError."""
    return io.BufferedReader(_ObjectFile(store, file), _BUFFER_BYTES.get(store.kind, _LOCAL_BUFFER_BYTES))


class _ObjectFile(io.RawIOBase):
    """Ranged reads of one object as a file."""

    def __init__(self, store: Store, file: SourceFile) -> None:
        super().__init__()
        self._store, self._file, self._position = store, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a place before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._file.size - self._position)
        if count <= 0:
            return 0
        data = self._store.read_range(self._file.key, self._position, count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
