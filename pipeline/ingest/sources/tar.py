"""Members of tar archives, plain or gzipped, read from start to end. Nothing is unpacked to disk."""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, NamedTuple

from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import is_hidden, unsafe_name
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.read import gunzipped, open_file
from pipeline.ingest.sources.source import SourceFile
from pipeline.storage.store import Store

_LARGEST_HEADER_BYTES: Final = 2**20
_STEP_BYTES: Final = 2**20
_BAD: Final = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError, OSError)


class Member(NamedTuple):
    """A file in an archive: its name, and its bytes or the reason why there are none."""

    name: str
    data: bytes | Reject


def members(
    store: Store, file: SourceFile, max_bytes: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Member]:
    """Every member that is no folder and not hidden; those that are not wanted without their bytes.

    Raises UnusableFile where the archive breaks, StorageError.
    """
    with open_file(store, file) as raw:
        unzipped = gunzipped(raw)
        zipped = unzipped is not raw
        stream = _Stream(unzipped, zipped)
        try:
            for info in _headers(stream):
                if info.size < 0:
                    raise tarfile.ReadError(f"a member of {info.size} bytes")
                name = info.name.removeprefix("./")
                if info.isdir() or is_hidden(name):
                    continue
                yield Member(name, _reject(name, info, max_bytes) or (stream.member(info) if wanted(name) else b""))
                if zipped and info.size > max_bytes:
                    raise UnusableFile(
                        "damaged-container", f"{name!r} of {info.size} bytes would have to be unpacked to go on"
                    )
        except _BAD as error:
            raise UnusableFile(
                "damaged-container", f"the tar archive breaks at byte {stream.tell()}: {error}"
            ) from error


def _reject(name: str, info: tarfile.TarInfo, max_bytes: int) -> Reject | None:
    if reject := unsafe_name(name):
        return reject
    if not info.isreg() or info.issparse():
        return Reject("unsafe-member", f"{name!r} is a link, device or sparse file, not a plain one")
    if info.size > max_bytes:
        return Reject("too-many-bytes", f"{info.size} bytes are more than {max_bytes}")
    return None


def _headers(stream: "_Stream") -> Iterator[tarfile.TarInfo]:
    """Headers one at a time, because iterating a TarFile keeps them all in memory. Raises the errors in `_BAD`."""
    archive: Any = tarfile.TarFile(fileobj=stream, mode="r")  # type: ignore[arg-type]
    info: tarfile.TarInfo | None = archive.firstmember
    while info is not None:
        yield info
        end, before = archive.offset, stream.tell()
        stream.seek(end)
        try:
            info = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without its end mark, so members may be missing") from error
        if archive.offset <= end:
            raise tarfile.ReadError(f"a header that leads back from byte {before}")


class _Stream:
    """A file for tarfile that seeks a gzip stream only forward and limits the memory that a header can request."""

    def __init__(self, file: IO[bytes], forward: bool) -> None:
        self._file, self._forward = file, forward

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> None:
        if not self._forward:
            self._file.seek(offset)
            return
        if offset < self.tell():
            raise tarfile.ReadError("a header that leads back")
        while (left := offset - self.tell()) > 0:
            if not self._file.read(min(left, _STEP_BYTES)):
                raise EOFError("it ends inside a member")

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count} bytes")
        return self._file.read(count)

    def member(self, info: tarfile.TarInfo) -> bytes:
        self.seek(info.offset_data)
        data = self._file.read(info.size)
        if len(data) < info.size:
            raise EOFError(f"it ends inside {info.name!r}")
        return data
