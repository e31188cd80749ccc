"""Where images come from: a folder of image files, gzipped IDX arrays, or scikit-learn's digits.

A source is listed once, on the driver, as partitions; each partition is read by one task, anywhere.
"""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError, DataError, NotFound, StorageError
from pipeline.storage.store import Store, resolve

__all__ = ["Partition", "RawImage", "Source", "open_source"]

Pixels = npt.NDArray[np.uint8]
IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801


@dataclass(frozen=True)
class RawImage:
    """One source image: an encoded file, or uint8 pixels [H, W] or [H, W, C], or the reason why there is neither."""

    path: str
    label: int | None
    data: bytes | Pixels
    unreadable: str | None = None


class Partition(Protocol):
    """A share of a source; picklable, reads its images where it is asked to."""

    def read(self) -> Iterator[RawImage]: ...


@dataclass(frozen=True)
class Source:
    """name: as given; classes: names that labels index, or None; partitions: together every image once."""

    name: str
    classes: tuple[str, ...] | None
    partitions: tuple[Partition, ...]


def open_source(source: str, partition_rows: int, config: StorageConfig) -> Source:
    """Raises ConfigError for what is no source and DataError for an empty or damaged one."""
    if source == "digits":
        return _digits(partition_rows)
    store = resolve(source, config)
    if source.endswith(("ubyte", "ubyte.gz", ".idx", ".idx.gz")):
        return _idx(source, partition_rows, config)
    return _folder(store, source, partition_rows)


# --- image folders ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderPartition:
    """Some files of a folder, with their labels."""

    store: Store
    keys: tuple[str, ...]
    labels: tuple[int | None, ...]

    def read(self) -> Iterator[RawImage]:
        for key, label in zip(self.keys, self.labels, strict=True):
            try:
                yield RawImage(key, label, self.store.read(key))
            except StorageError as error:
                if not isinstance(error, NotFound) and self.store.kind != "local":
                    raise
                yield RawImage(key, label, b"", unreadable=str(error))


def _folder(store: Store, name: str, partition_rows: int) -> Source:
    keys = [entry.key for entry in store.list() if not any(part.startswith(".") for part in entry.key.split("/"))]
    if not keys:
        raise DataError(
            f"no images at {store.uri}: the source must be a folder with image files, an IDX file (*-ubyte.gz), "
            "or the word 'digits'"
        )
    folders = [key.partition("/")[0] if "/" in key else None for key in keys]
    # Files beside the class folders (a README, say) have no label and take none from the others.
    classes = tuple(sorted({folder for folder in folders if folder is not None})) or None
    index = {folder: number for number, folder in enumerate(classes or ())}
    labels = [index.get(folder) if folder is not None else None for folder in folders]
    slices = _slices(len(keys), partition_rows)
    return Source(name, classes, tuple(FolderPartition(store, tuple(keys[s]), tuple(labels[s])) for s in slices))


# --- IDX -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdxPartition:
    """A range of an IDX file; each task decompresses the file once."""

    images: str
    labels: str | None
    config: StorageConfig
    rows: range

    def read(self) -> Iterator[RawImage]:
        pixels = _read_idx(self.images, IDX_IMAGES, self.config)
        labels = None if self.labels is None else _read_idx(self.labels, IDX_LABELS, self.config)
        for row in self.rows:
            label = None if labels is None else int(labels[row])
            yield RawImage(f"{self.images.rpartition('/')[2]}#{row}", label, pixels[row])


def _idx(images: str, partition_rows: int, config: StorageConfig) -> Source:
    pixels = _read_idx(images, IDX_IMAGES, config)
    if len(pixels) == 0:
        raise DataError(f"{images} holds no images")
    labels = _labels_beside(images, config)
    classes = None
    if labels is not None:
        values = _read_idx(labels, IDX_LABELS, config)
        if len(values) != len(pixels):
            raise DataError(f"{labels} has {len(values)} labels for the {len(pixels)} images of {images}")
        classes = tuple(str(value) for value in range(int(values.max()) + 1)) if len(values) else None
    rows = range(len(pixels))
    return Source(
        images,
        classes,
        tuple(IdxPartition(images, labels, config, rows[s]) for s in _slices(len(pixels), partition_rows)),
    )


def _labels_beside(images: str, config: StorageConfig) -> str | None:
    """The labels file of an images file by its name (x-images-idx3-ubyte -> x-labels-idx1-ubyte), zipped or not."""
    beside = re.sub(r"images([-.])idx3", r"labels\1idx1", images)
    if beside == images:
        return None
    for name in (beside, beside.removesuffix(".gz"), f"{beside}.gz"):
        parent, _, file = name.rpartition("/")
        if resolve(parent or ".", config).exists(file):
            return name
    return None


def _read_idx(uri: str, magic: int, config: StorageConfig) -> Pixels:
    """uint8 array of an IDX file (LeCun's MNIST format): big-endian magic, one size a dimension, bytes."""
    parent, _, name = uri.rpartition("/")
    try:
        data = resolve(parent or ".", config).read(name)
    except NotFound as error:
        raise DataError(f"no IDX file {uri}: check --source") from error
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        found, *_ = struct.unpack_from(">I", data)
        shape = struct.unpack_from(f">{found & 0xFF}I", data, 4)
        body = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
    except (OSError, EOFError, struct.error, ValueError, zlib.error) as error:
        raise DataError(f"{uri} is not a whole IDX file: {error}") from error
    if found != magic or body.size != int(np.prod(shape)):
        raise DataError(f"{uri} is not an IDX file of {'images' if magic == IDX_IMAGES else 'labels'} (uint8)")
    return body.reshape(shape)


# --- digits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DigitsPartition:
    """A range of scikit-learn's 1,797 handwritten digits of 8 x 8 (UCI optdigits), levels 0..16 scaled to 0..255."""

    rows: range

    def read(self) -> Iterator[RawImage]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        levels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
        for row in self.rows:
            yield RawImage(f"digits#{row}", int(digits.target[row]), levels[row])


def _digits(partition_rows: int) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("--source digits needs scikit-learn: pip install 'ddpm-pipeline[digits]'") from error
    count = len(load_digits().target)
    partitions = tuple(DigitsPartition(range(count)[s]) for s in _slices(count, partition_rows))
    return Source("digits", tuple(str(digit) for digit in range(10)), partitions)


def _slices(count: int, size: int) -> Sequence[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
