"""Reading of input files: a Reject where one file is at fault, StorageError where the store fails."""

import errno
import gzip
import io
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, Final, cast

from pipeline.errors import Denied, MissingBucket, NotFound, StorageError
from pipeline.images.file_types import HEAD_BYTES
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import is_hidden, is_valid_key
from pipeline.ingest.sources.source import SourceFile
from pipeline.storage.store import Store

_BUFFER_BYTES: Final = {"s3": 4 * 2**20}
_LOCAL_BUFFER_BYTES: Final = 2**18
_SKIP_BYTES: Final = 2**20
_INVALID_KEY: Final = "an object whose name has an empty part, '.' or '..'"  # part of fingerprints at rest
UNKNOWN_SIZE: Final = -2
"""The size of a file that was named but not listed."""
_REQUESTS_AT_ONCE: Final = 8
"""Small objects are requested ahead, because an object store takes long to answer."""


def visible_files(store: Store) -> Iterator[SourceFile]:
    """Every file under the root that is not hidden (no part of its name begins with a dot), in key order."""
    for state in store.list_versioned():
        if not is_hidden(state.key):
            yield SourceFile(*state) if is_valid_key(state.key) else SourceFile(state.key, -1, _INVALID_KEY)


def new_files(store: Store, files: Iterable[SourceFile] | None, known: Container[str]) -> Iterator[SourceFile]:
    """The given files, else all visible files of the store, without those whose fingerprint is known."""
    for file in visible_files(store) if files is None else files:
        if file.fingerprint not in known:
            yield file


def as_reject(store: Store, error: StorageError) -> Reject:
    """The reject for a file that could not be read. Raises the error instead when the store is at fault."""
    if isinstance(error, NotFound):
        return Reject("missing", str(error))
    if store.kind != "local":
        if not isinstance(error, Denied):
            raise error
        next(store.list(), None)  # raises Denied too when the credentials are at fault, which affects all files
    return Reject("unreadable", str(error))


def read_images(files: Iterable[tuple[Store, SourceFile]], max_bytes: int) -> Iterator[bytes | Reject]:
    """The bytes of every file or the reason why there are none, in order; objects are read ahead."""
    pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE)  # starts no thread before the first submit
    waiting: list[Callable[[], bytes | Reject]] = []
    try:
        for store, file in files:
            read = partial(_read, store, file, max_bytes)
            waiting.append(pool.submit(read).result if store.kind == "s3" else read)
            if len(waiting) >= _REQUESTS_AT_ONCE:
                yield waiting.pop(0)()
        while waiting:
            yield waiting.pop(0)()
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
        return as_reject(store, error)


def _read_unlisted(store: Store, key: str, max_bytes: int) -> bytes | Reject:
    try:
        if store.kind == "local":
            store.size(key)  # raises NotFound for pipes and devices, which might never end
        data = store.read_range(key, 0, max_bytes + 1)
    except MissingBucket as error:  # only one line of a list names this bucket
        return Reject("missing", str(error))
    except StorageError as error:
        return as_reject(store, error)
    return data if len(data) <= max_bytes else Reject("too-many-bytes", f"more than {max_bytes} bytes")


def read_head(store: Store, file: SourceFile) -> bytes:
    """The first bytes of a file; empty when it cannot be read. Raises StorageError when the store fails."""
    if file.size <= 0:
        return b""
    try:
        return store.read_range(file.key, 0, HEAD_BYTES)
    except StorageError as error:
        as_reject(store, error)
        return b""


def read_heads(store: Store, files: list[SourceFile]) -> list[bytes]:
    """`read_head` of each file."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(lambda file: read_head(store, file), files))


def open_file(store: Store, file: SourceFile) -> io.BufferedReader:
    """The file for buffered random access. Reads raise StorageError."""
    return io.BufferedReader(_ObjectFile(store, file), _BUFFER_BYTES.get(store.kind, _LOCAL_BUFFER_BYTES))


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is gzipped."""
    return head[:2] == b"\x1f\x8b"


def gunzipped(raw: io.BufferedReader) -> IO[bytes]:
    """The file itself, or a stream of its content when it is gzipped."""
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip(raw.peek(2)) else raw


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """The next `count` bytes. Raises EOFError when there are fewer."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError(f"{count - len(data)} bytes are missing")
    return data


def skip_exactly(stream: IO[bytes], count: int) -> None:
    """Read past `count` bytes. Raises EOFError when there are fewer."""
    while count:
        count -= len(read_exactly(stream, min(count, _SKIP_BYTES)))


class _ObjectFile(io.RawIOBase):
    """An object as a file: each read is a ranged request."""

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
            raise OSError(errno.EINVAL, "a position before the start of the file")
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
