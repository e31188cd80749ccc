"""NumPy archives of uint8 images: x, images or data [N, H, W], [N, H, W, C] or [N, C, H, W], with y or labels [N].

Arrays of one ending belong together (x_train and y_train). Arrays of objects are pickles and never loaded.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pipeline.ingest.sources.containers import Unfit
from pipeline.ingest.sources.source import SourceFile, SourceRow, cut
from pipeline.ingest.sources.zip import opened_zip
from pipeline.storage.store import Store

__all__ = ["NpzReader", "is_npz"]

_IMAGES: Final = ("x", "images", "image", "data", "arr_0")
_LABELS: Final = ("y", "labels", "label", "targets", "arr_1")
_BAD: Final = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_MOST_LABELS: Final = 2**28
_STEP_BYTES: Final = 2**20


class _Array(NamedTuple):
    """name: member without `.npy`; labels: member, or None; first: number of its first image in the archive."""

    name: str
    labels: str | None
    shape: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class NpzReader:
    """A share is a range of images, counted over the archive's arrays in the order of their names."""

    partition_rows: int

    def shares(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        with opened_zip(store, file) as archive:
            arrays = _arrays(archive)
        yield from cut(sum(array.shape[0] for array in arrays), self.partition_rows, forward=True)

    def rows(self, store: Store, file: SourceFile, share: range | None) -> Iterator[SourceRow]:
        with opened_zip(store, file) as archive:
            for array in _arrays(archive):
                count = array.shape[0]
                start, stop = (share.start, share.stop) if share is not None else (0, array.first + count)
                inside = range(max(start - array.first, 0), min(stop - array.first, count))
                if inside:
                    yield from _rows(archive, file.key, array, inside)


def is_npz(store: Store, file: SourceFile) -> bool:
    """True when every member is an array. Raises Unfit, StorageError."""
    with opened_zip(store, file) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _arrays(archive: zipfile.ZipFile) -> list[_Array]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    found, first = [], 0
    for name in sorted(names):
        stem, ending = next(((stem, name[len(stem) :]) for stem in _IMAGES if _belongs(name, stem)), (None, ""))
        if stem is None:
            continue
        shape, dtype = _header(archive, name)
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and _axis(shape) is None):
            raise Unfit("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not uint8 images")
        labels = next((label + ending for label in _LABELS if label + ending in names), None)
        found.append(_Array(name, labels if labels != name else None, shape, first))
        first += shape[0]
    if not found:
        raise Unfit("wrong-schema", f"no array of images ({', '.join(_IMAGES)}) among {', '.join(sorted(names)[:20])}")
    return found


def _belongs(name: str, stem: str) -> bool:
    return name == stem or name.startswith(f"{stem}_")


def _axis(shape: tuple[int, ...]) -> int | None:
    """Where the channels are: 3 (last) or 1."""
    return 3 if shape[3] in (1, 3, 4) else 1 if shape[1] in (1, 3) else None


def _rows(archive: zipfile.ZipFile, key: str, array: _Array, rows: range) -> Iterator[SourceRow]:
    labels = None if array.labels is None else _labels(archive, array.labels, array.shape[0])
    shape = array.shape[1:]
    size = int(np.prod(shape))
    with _opened(archive, array.name) as stream:
        _array_header(stream)
        left = rows.start * size
        while left:
            left -= len(_exactly(stream, min(left, _STEP_BYTES)))
        for row in rows:
            pixels = np.frombuffer(_exactly(stream, size), np.uint8).reshape(shape)
            if len(shape) == 3 and _axis(array.shape) == 1:
                pixels = pixels.transpose(1, 2, 0)
            yield SourceRow(f"{key}#{array.name}/{row}", pixels, None if labels is None else str(labels[row]))


def _labels(archive: zipfile.ZipFile, name: str, count: int) -> list[int | str]:
    shape, dtype = _header(archive, name)
    if int(np.prod(shape)) != count or count > _MOST_LABELS or dtype.kind not in "iuU":
        raise Unfit("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not {count} labels")
    with _opened(archive, name) as stream:
        _array_header(stream)
        values: npt.NDArray[np.generic] = np.frombuffer(_exactly(stream, count * dtype.itemsize), dtype)
    return cast(list[int | str], values.tolist())


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with _opened(archive, name) as stream:
        return _array_header(stream)


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type; the stream is then at the first element. Raises Unfit for pickles."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise Unfit("wrong-schema", "an array of objects is a pickle, which can run any program: it is not loaded")
    if fortran and len(shape) > 1:
        raise Unfit("wrong-schema", "an array in Fortran order: save it with numpy.ascontiguousarray")
    return shape, dtype


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(f"{name}.npy") as stream:
            yield stream
    except (*_BAD, KeyError) as error:
        raise Unfit("damaged-container", f"array {name!r} cannot be read: {error}") from error


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError(f"{count - len(data)} bytes are missing")
    return data
