"""Reader of NumPy archives: uint8 images x, images or data [N, H, W], [N, H, W, C] or [N, C, H, W]; y or labels [N].

Arrays whose names differ only in this word belong together: x_train and y_train, or MedMNIST's train_images and
train_labels. Arrays of objects are pickles and never loaded.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pipeline.config.ingest import IngestConfig
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.label_columns import label_like
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose, label_from_value
from pipeline.ingest.sources.read import read_exactly, skip_exactly
from pipeline.ingest.sources.source import SourceFile, SourceRow, chunk_rows
from pipeline.ingest.sources.splits import Roles, named_split, roles_of, split_in_name
from pipeline.ingest.sources.zip import open_zip
from pipeline.storage.store import Store

_IMAGES: Final = ("x", "images", "image", "imgs", "data", "arr_0")
_LABELS: Final = ("y", "labels", "label", "targets", "target", "arr_1")
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
    roles: Roles = ()
    labelled: bool = True

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        with open_zip(store, file) as archive:
            arrays = self._arrays(archive)
        yield from chunk_rows(sum(array.shape[0] for array in arrays), self.partition_rows, sequential=True)

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        with open_zip(store, file) as archive:
            for array in self._arrays(archive):
                count = array.shape[0]
                start, stop = (row_range.start, row_range.stop) if row_range is not None else (0, array.first + count)
                inside = range(max(start - array.first, 0), min(stop - array.first, count))
                if not inside:
                    continue
                role = dict(self.roles).get(split_in_name(array.name) or "")
                split = role and named_split(role, self.roles)
                for row in _rows(archive, file.key, array, inside):
                    yield row._replace(split=split)

    def _arrays(self, archive: zipfile.ZipFile) -> list[_Array]:
        """The arrays of images, without splits that are left out."""
        out = {name for name, role in self.roles if role == "out"}
        found, first = list[_Array](), 0
        for array in _arrays(archive):
            if split_in_name(array.name) not in out:
                labels = array.labels if self.labelled else None
                found.append(array._replace(first=first, labels=labels))
                first += array.shape[0]
        return found


def open_npz(reader: NpzReader, store: Store, file: SourceFile, config: IngestConfig) -> tuple[NpzReader, SourceInfo]:
    """The reader with labels and splits as in this archive. Raises ConfigError, StorageError."""
    where = store.location(file.key)
    try:
        with open_zip(store, file) as archive:
            arrays = _arrays(archive)
            columns = tuple(sorted(name.removesuffix(".npy") for name in archive.namelist()))
            values = [
                label_from_value(x)
                for each in arrays
                if each.labels
                for x in _labels(archive, each.labels, each.shape[0])
            ]
    except UnusableFile:  # the task that reads the archive meets the error again
        return reader, SourceInfo("npz")
    used = list(dict.fromkeys(each.labels for each in arrays if each.labels))
    found = [Candidate("arrays", f"array {', '.join(used)}", tuple(values))] if values else []
    choice = choose(where, found, config)
    roles = roles_of((split_in_name(each.name) for each in arrays), config, where)
    names = {name for each in arrays for name in (each.name, each.labels)}
    unused = [name for name in columns if name not in names and label_like([name])]
    if unused:
        more = f"array {', '.join(unused)} may hold labels and belongs to no images by its name: y or labels would"
        choice = choice._replace(notes=(*choice.notes, more))
    return replace(reader, roles=roles, labelled=choice.candidate is not None), SourceInfo(
        "npz", columns, choice, roles
    )


def is_npz(store: Store, file: SourceFile) -> bool:
    """True when every member is an array. Raises UnusableFile, StorageError."""
    with open_zip(store, file) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _arrays(archive: zipfile.ZipFile) -> list[_Array]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    found, first = [], 0
    belongs = {
        _without(name, _LABELS): name for name in sorted(names, reverse=True) if _without(name, _LABELS) is not None
    }
    for name in sorted(names):
        rest = _without(name, _IMAGES)
        if rest is None:
            continue
        shape, dtype = _header(archive, name)
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and _axis(shape) is None):
            raise UnusableFile("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not uint8 images")
        found.append(_Array(name, belongs.get(rest), shape, first))
        first += shape[0]
    if not found:
        raise UnusableFile(
            "wrong-schema", f"no array of images ({', '.join(_IMAGES)}) among {', '.join(sorted(names)[:20])}"
        )
    return found


def _without(name: str, words: tuple[str, ...]) -> tuple[str, ...] | None:
    """The other words of the name; None where none of `words` is in it."""
    if name in words:
        return ()
    parts = name.split("_")
    word = next((word for word in words if word in parts), None)
    return None if word is None else tuple(part for part in parts if part != word)


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
            yield SourceRow(
                f"{key}#{array.name}/{row}", pixels, None if labels is None else label_from_value(labels[row])
            )


def _labels(archive: zipfile.ZipFile, name: str, count: int) -> list[Any]:
    shape, dtype = _header(archive, name)
    if int(np.prod(shape)) != count or count > _MOST_LABELS or dtype.kind not in "iufbUS":
        raise UnusableFile("wrong-schema", f"array {name!r} is {dtype} {list(shape)}, not {count} labels")
    with _opened(archive, name) as stream:
        _array_header(stream)
        values: npt.NDArray[np.generic] = np.frombuffer(read_exactly(stream, count * dtype.itemsize), dtype)
    return cast(list[Any], values.tolist())


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
