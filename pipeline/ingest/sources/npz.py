"""Reader of NumPy archives: uint8 images x, images or data [N, H, W], [N, H, W, C] or [N, C, H, W]; y or labels [N].

Arrays with the same suffix belong together (x_train and y_train). Arrays of objects are pickles and never loaded.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.read import read_exactly, skip_exactly
from pipeline.ingest.sources.source import SourceFile, SourceRow, chunk_rows
from pipeline.ingest.sources.zip import open_zip
from pipeline.storage.store import Store

_IMAGES: Final = ("x", "images", "image", "data", "arr_0")
_LABELS: Final = ("y", "labels", "label", "targets", "arr_1")
_BAD: Final = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_MOST_LABELS: Final = 2**28


class _Array(NamedTuple):
    """An array of images. name, labels: members without `.npy`; first: number of its first image in the archive."""

    name: str
    labels: str | None
    shape: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class NpzReader:
    """Row numbers count the images of all arrays in the order of the arrays' names."""

    partition_rows: int

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        with open_zip(store, file) as archive:
            arrays = _arrays(archive)
        yield from chunk_rows(sum(array.shape[0] for array in arrays), self.partition_rows, sequential=True)

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        with open_zip(store, file) as archive:
            for array in _arrays(archive):
                count = array.shape[0]
                start, stop = (row_range.start, row_range.stop) if row_range is not None else (0, array.first + count)
                inside = range(max(start - array.first, 0), min(stop - array.first, count))
                if inside:
                    yield from _rows(archive, file.key, array, inside)


def is_npz(store: Store, file: SourceFile) -> bool:
    """True when every member is an array. Raises UnusableFile, StorageError."""
    with open_zip(store, file) as archive:
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
            raise UnusableFile("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not uint8 images")
        labels = next((label + ending for label in _LABELS if label + ending in names), None)
        found.append(_Array(name, labels if labels != name else None, shape, first))
        first += shape[0]
    if not found:
        raise UnusableFile(
            "wrong-schema", f"no array of images ({', '.join(_IMAGES)}) among {', '.join(sorted(names)[:20])}"
        )
    return found


def _belongs(name: str, stem: str) -> bool:
    return name == stem or name.startswith(f"{stem}_")


def _axis(shape: tuple[int, ...]) -> int | None:
    """Axis of the channels: 3 (last) or 1."""
    return 3 if shape[3] in (1, 3, 4) else 1 if shape[1] in (1, 3) else None


def _rows(archive: zipfile.ZipFile, key: str, array: _Array, rows: range) -> Iterator[SourceRow]:
    labels = None if array.labels is None else _labels(archive, array.labels, array.shape[0])
    shape = array.shape[1:]
    size = int(np.prod(shape))
    with _opened(archive, array.name) as stream:
        _array_header(stream)
        skip_exactly(stream, rows.start * size)
        for row in rows:
            pixels = np.frombuffer(read_exactly(stream, size), np.uint8).reshape(shape)
            if len(shape) == 3 and _axis(array.shape) == 1:
                pixels = pixels.transpose(1, 2, 0)
            yield SourceRow(f"{key}#{array.name}/{row}", pixels, None if labels is None else str(labels[row]))


def _labels(archive: zipfile.ZipFile, name: str, count: int) -> list[int | str]:
    shape, dtype = _header(archive, name)
    if int(np.prod(shape)) != count or count > _MOST_LABELS or dtype.kind not in "iuU":
        raise UnusableFile("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not {count} labels")
    with _opened(archive, name) as stream:
        _array_header(stream)
        values: npt.NDArray[np.generic] = np.frombuffer(read_exactly(stream, count * dtype.itemsize), dtype)
    return cast(list[int | str], values.tolist())


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with _opened(archive, name) as stream:
        return _array_header(stream)


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type; leaves the stream at the first element. Raises UnusableFile for pickles."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise UnusableFile(
            "wrong-schema", "an array of objects is a pickle, which can run any program: it is not loaded"
        )
    if fortran and len(shape) > 1:
        raise UnusableFile("wrong-schema", "an array in Fortran order: save it with numpy.ascontiguousarray")
    return shape, dtype


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(f"{name}.npy") as stream:
            yield stream
    except (*_BAD, KeyError) as error:
        raise UnusableFile("damaged-container", f"array {name!r} cannot be read: {error}") from error
