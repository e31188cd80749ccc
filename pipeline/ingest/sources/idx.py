"""Source of IDX files, the format of MNIST, gzipped or not.

Layout: big-endian magic number, a uint32 size for each dimension, uint8 values. Labels are in a file of their own.
"""

import io
import math
import re
import struct
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

import numpy as np

from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError
from pipeline.images.file_types import kind_of
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.labels import Candidate, LabelChoice, SourceInfo, choose
from pipeline.ingest.sources.read import (
    gunzipped,
    is_gzip,
    open_file,
    read_exactly,
    read_heads,
    skip_exactly,
    visible_files,
)
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow, chunk_rows
from pipeline.ingest.sources.splits import Roles, named_split, roles_of, split_in_name
from pipeline.storage.store import Store

_UINT8: Final = 0x08
_BAD: Final = (OSError, EOFError, struct.error, ValueError, zlib.error)


class Pair(NamedTuple):
    """A file of images, the file of its labels, and the shape of the images: [N, H, W] or [N, H, W, C]."""

    images: SourceFile
    labels: SourceFile | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class IdxSource:
    """Rows are uint8 pixels. others: files of the folder that are neither images nor labels."""

    name: str
    store: Store
    pairs: tuple[Pair, ...]
    others: tuple[SourceFile, ...]
    classes: tuple[str, ...] | None
    partition_rows: int
    info: SourceInfo

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        for file in self.others:
            if file.fingerprint not in known:
                yield Partition(file.key, (file,))
        for images, labels, shape in self.pairs:
            files = (images,) if labels is None else (images, labels)
            if all(file.fingerprint in known for file in files):
                continue
            sequential = images.key.endswith(".gz") or is_gzip(self.store.read_range(images.key, 0, 2))
            for row_range in chunk_rows(shape[0], self.partition_rows, sequential):
                yield Partition(f"{images.key}[{row_range.start}:{row_range.stop}]", files, row_range)

    def _split(self, images: SourceFile) -> str | None:
        role = dict(self.info.splits).get(split_in_name(images.key) or "")
        return named_split(role, self.info.splits) if role else None

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        images, row_range = partition.files[0], partition.rows
        if row_range is None:
            yield SourceRow(images.key, Reject("not-an-image", "neither IDX images nor the labels of some"))
            return
        try:
            labels = _labels(self.store, partition.files[1]) if len(partition.files) > 1 else None
            with _opened(self.store, images) as (file, shape):
                size = math.prod(shape[1:])
                _skip(file, row_range.start * size)
                split = self._split(images)
                for row in row_range:
                    pixels = np.frombuffer(read_exactly(file, size), np.uint8).reshape(shape[1:])
                    yield SourceRow(f"{images.key}#{row}", pixels, None if labels is None else str(labels[row]), split)
        except DataError as error:  # complete when it was listed, so changed since
            reject = Reject("damaged-container", str(error))
            yield SourceRow(f"{images.key}[{row_range.start}:{row_range.stop}]", reject)


def open_idx(name: str, store: Store, files: list[SourceFile], config: IngestConfig) -> IdxSource:
    """Opens IDX files, once each is known to be complete. Raises DataError, StorageError."""
    pairs, labels = [], set[int]()
    heads = [kind_of(head) for head in read_heads(store, files)] if len(files) > 1 else ["idx"]
    for file in (file for file, kind in zip(files, heads, strict=True) if kind == "idx"):
        with _opened(store, file) as (stream, shape):
            _skip(stream, math.prod(shape))
            if stream.read(1):
                raise DataError(f"{store.location(file.key)} is not a whole IDX file: bytes after its images")
        if shape[0] == 0:
            raise DataError(f"{store.location(file.key)} holds no images")
        beside = _labels_beside(store, file.key)
        pairs.append(Pair(file, beside, shape))
        if beside is None:
            continue
        values = _labels(store, beside)
        if len(values) != shape[0]:
            what = f"{len(values)} labels for the {shape[0]} images of {store.location(file.key)}"
            raise DataError(f"{store.location(beside.key)} has {what}")
        labels |= set(np.unique(values).tolist())
    classes = tuple(str(value) for value in range(max(labels) + 1)) if labels else None
    used = {file for pair in pairs for file in pair[:2]}
    others = tuple(file for file in files if file not in used)
    choice, roles = _found(name, pairs, labels, config)
    if choice.candidate is None:
        pairs, classes = [pair._replace(labels=None) for pair in pairs], None
    kept = tuple(pair for pair in pairs if dict(roles).get(split_in_name(pair.images.key) or "") != "out")
    info = SourceInfo("IDX files", (), choice, roles)
    return IdxSource(name, store, kept, others, classes, config.partition_rows, info)


def _found(name: str, pairs: list[Pair], labels: set[int], config: IngestConfig) -> tuple[LabelChoice, Roles]:
    values = tuple(str(label) for label in sorted(labels))
    files = ", ".join(pair.labels.key for pair in pairs if pair.labels is not None)
    choice = choose(name, [Candidate("arrays", files, values)] if labels else [], config)
    return choice, roles_of((split_in_name(pair.images.key) for pair in pairs), config, name) if len(pairs) > 1 else ()


def _labels_beside(store: Store, key: str) -> SourceFile | None:
    """The labels file that belongs to an images file by name: x-images-idx3-ubyte -> x-labels-idx1-ubyte, or .gz."""
    beside = re.sub(r"images([-.])idx[34]", r"labels\1idx1", key)
    if beside == key:
        return None
    names = (beside, beside.removesuffix(".gz"), f"{beside}.gz")
    folder = beside.rpartition("/")[0]
    found = {file.key: file for file in visible_files(store) if file.key.rpartition("/")[0] == folder}
    return next((found[name] for name in names if name in found), None)


def _labels(store: Store, file: SourceFile) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    with _opened(store, file, dimensions=(1,)) as (stream, shape):
        return np.frombuffer(read_exactly(stream, shape[0]), np.uint8)


@contextmanager
def _opened(
    store: Store, file: SourceFile, dimensions: tuple[int, ...] = (3, 4)
) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The file positioned after its header, and its shape. Raises DataError (also while it is read), StorageError."""
    where = store.location(file.key)
    with open_file(store, file) as raw:
        stream = gunzipped(raw)
        try:
            zeros, kind, count = struct.unpack(">HBB", read_exactly(stream, 4))
            if zeros or kind != _UINT8 or count not in dimensions:
                raise DataError(f"{where} is not an IDX file of {'labels' if dimensions == (1,) else 'images'} (uint8)")
            yield stream, struct.unpack(f">{count}I", read_exactly(stream, 4 * count))
        except _BAD as error:
            raise DataError(f"{where} is not a whole IDX file: {error}") from error


def _skip(stream: IO[bytes], count: int) -> None:
    if isinstance(stream, io.BufferedReader):  # not compressed: reading the last byte shows that all are there
        stream.seek(max(count - 1, 0), io.SEEK_CUR)
        count = min(count, 1)
    skip_exactly(stream, count)
