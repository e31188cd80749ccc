"""Objects in the memory of one process, for tests: the backend of `memory://` URIs, shared by all threads."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import AlreadyExists, NotFound


class MemoryBackend:
    """fsspec's global memory file system behind one lock; the version of an object is the sha256 of its bytes."""

    def __init__(self) -> None:
        self._fs = MemoryFileSystem()
        self._lock = threading.RLock()

    @property
    def pa_fs(self) -> Any:
        import pyarrow.fs

        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        with self._lock:
            if not self._fs.isfile(path):
                raise NotFound(f"no object memory://{path}: check the URI (memory:// is private to one process)")
            data: bytes = self._fs.cat_file(path)
        return data, _version(data)

    def read_range(self, path: str, start: int, count: int) -> bytes:
        return self.read_versioned(path)[0][start : start + count]

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            self._write(path, data)

    def create_once(self, path: str, data: bytes) -> str:
        with self._lock:
            if self._fs.isfile(path):
                raise AlreadyExists(f"memory://{path} exists already")
            self._write(path, data)
        return _version(data)

    def compare_and_swap(self, path: str, data: bytes, expected: str) -> str:
        with self._lock:
            if not self._fs.isfile(path) or self.read_versioned(path)[1] != expected:
                raise AlreadyExists(f"memory://{path} was changed by another writer: read it again")
            self._write(path, data)
        return _version(data)

    def size(self, path: str) -> int | None:
        with self._lock:
            return int(self._fs.info(path)["size"]) if self._fs.isfile(path) else None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((path, size) for path, size, _ in self.list_versioned(prefix))

    def list_versioned(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        with self._lock:
            files = {name.lstrip("/"): file for name, file in self._fs.store.items()}
            found = [
                (path, int(file.size), _version(file.getvalue()))
                for path, file in files.items()
                if path.startswith(prefix)
            ]
        return iter(sorted(found))

    def delete(self, path: str) -> None:
        with self._lock:
            if self._fs.isfile(path):
                self._fs.rm_file(path)

    def _write(self, path: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(path, data)
        except FileExistsError as error:
            raise NotFound(f"memory://{path} cannot exist: one of its parent folders is a file") from error


BACKEND = MemoryBackend()


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
