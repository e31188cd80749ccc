"""Local files as objects: write a temporary file, fsync, then one rename or hard link.

Temporary and lock files have hidden names, which listings leave out. A killed process may leave a temporary file
behind; the file never becomes an object.
"""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.errors import AlreadyExists, Denied, NotFound, StorageError

_HIDDEN = ".ddpm-"
_KINDS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class LocalBackend:
    """Objects are files; the version of an object is the sha256 of its bytes."""

    @property
    def pa_fs(self) -> Any:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem()

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        with _mapped(path), open(path, "rb") as file:
            data = file.read()
        return data, _version(data)

    def read_range(self, path: str, start: int, count: int) -> bytes:
        with _mapped(path), open(path, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(count)

    def put(self, path: str, data: bytes) -> None:
        with _mapped(path), _temp_file(path, data) as temp:
            os.replace(temp, path)

    def create_once(self, path: str, data: bytes) -> str:
        # link fails when the name exists (rename does not), so the kernel lets exactly one writer succeed.
        with _mapped(path), _temp_file(path, data) as temp:
            try:
                os.link(temp, path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP):
                    raise
                raise StorageError(
                    f"{path}: create-once needs hard links, which this file system lacks: use another disk or s3://"
                ) from error
        return _version(data)

    def compare_and_swap(self, path: str, data: bytes, expected: str) -> str:
        with _mapped(path), _folder_lock(path):
            try:
                with open(path, "rb") as file:
                    found = _version(file.read())
            except FileNotFoundError:
                found = "deleted"
            if found != expected:
                raise AlreadyExists(f"{path} was changed by another writer: read it again")
            self.put(path, data)
        return _version(data)

    def size(self, path: str) -> int | None:
        with _mapped(path):
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((path, size) for path, size, _ in self.list_versioned(prefix) if size >= 0)

    def list_versioned(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        folder, _, start = prefix.rpartition("/")
        return _walk(folder, start, ())

    def delete(self, path: str) -> None:
        with _mapped(path), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            os.unlink(path)


BACKEND = LocalBackend()


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _walk(folder: str, start: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, str]]:
    """(path, size, version) of files under `folder` whose next path part begins with `start`.

    In key order: a folder sorts as "name/". ancestors: (device, inode) of the folders above, to detect link cycles.
    """
    with _mapped(folder):
        try:
            status = os.stat(folder or "/")
            with os.scandir(folder or "/") as entries:
                names = sorted(
                    entry.name + "/" if _is_folder(entry) else entry.name
                    for entry in entries
                    if entry.name.startswith(start) and not entry.name.startswith(_HIDDEN)
                )
        except (FileNotFoundError, NotADirectoryError):
            return
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        yield folder, -1, "a link to a folder that holds it"
        return
    for name in names:
        path = f"{folder}/{name}"
        if name.endswith("/"):
            yield from _walk(path[:-1], "", (*ancestors, here))
        else:
            yield path, *_state(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _state(path: str) -> tuple[int, str]:
    """Size and version of a file; -1 and a description of anything else.

    The descriptions, here and in `_walk`, are part of fingerprints at rest: do not reword them.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            return -1, f"a link to nowhere ({error.strerror})"
        return -1, f"{error.strerror}"  # such as deleted during the listing
    if not stat.S_ISREG(status.st_mode):
        return -1, f"no file but a {_KINDS.get(stat.S_IFMT(status.st_mode), 'special file')}"
    return status.st_size, f"{status.st_mtime_ns}"


@contextmanager
def _temp_file(path: str, data: bytes) -> Iterator[str]:
    """A durable hidden file with `data` beside `path`; removed at the end, after which the folder is synced too."""
    folder = os.path.dirname(path)
    _make_folder(folder)
    temp = f"{folder}/{_HIDDEN}{uuid.uuid4().hex}.tmp"
    try:
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temp
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temp)
    _sync_folder(folder)


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
        _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _folder_lock(path: str) -> Iterator[None]:
    """An exclusive lock for all keys of one folder, among processes and threads; released when its process dies."""
    folder = os.path.dirname(path)
    _make_folder(folder)
    with open(f"{folder}/{_HIDDEN}lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """Translate OSError to the storage errors."""
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists already") from error
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}: check the path") from error
    except IsADirectoryError as error:
        raise NotFound(f"{path} is a folder, not a file: check the path") from error
    except PermissionError as error:
        raise Denied(f"permission denied at {path}: check the owner and mode of the file and its folder") from error
    except NotADirectoryError as error:
        raise NotFound(f"{path} cannot exist: one of its parent folders is a file") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}: {_remedy(error.errno)}") from error


def _remedy(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    if number == errno.EFBIG:
        return "raise the limit on file sizes (ulimit -f), or check the disk and the file system"
    return "check the disk and the file system"
