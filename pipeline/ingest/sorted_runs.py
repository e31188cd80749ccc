"""Runs: prepared images between the two passes of an ingest, sorted by slot, so that a slot is one range of each file.

    [0]        int64 [slots + 1, 3], little-endian: records, text bytes and image bytes in the slots before each slot
    records    one of fixed size an image (`record_type`)
    texts      source name, NUL, label (nothing where there is none), UTF-8
    images     PNG

A reader of some slots takes four ranges, whatever the size of the file. A run lives in the work folder of one ingest
and is never read by another version of the program.
"""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config.base import FileEntry
from pipeline.errors import VerificationFailed
from pipeline.storage.store import Store

__all__ = ["Gathered", "PreparedImage", "RunFile", "gather", "record_type", "run_bytes"]

READERS = 8
Records = npt.NDArray[np.void]


class PreparedImage(NamedTuple):
    """key, sha256 (32 bytes) and channel sums are of the pixels; partition and row say where it lay in the source."""

    slot: int
    key: int
    sha256: bytes
    partition: int
    row: int
    sums: tuple[int, ...]
    source: str
    label: str | None
    png: bytes


class RunFile(FileEntry):
    """What a marker says of a run."""

    rows: int
    text_bytes: int


def record_type(channels: int) -> np.dtype[np.void]:
    """sums: of levels and then of squared levels, by channel; crc: of the PNG."""
    fields: list[Any] = [("key", "<u8"), ("sha256", "V32"), ("partition", "<u4"), ("row", "<u4")]
    fields += [("text", "<u4"), ("png", "<u4"), ("crc", "<u4"), ("sums", "<i8", (2 * channels,))]
    return np.dtype(fields)


def run_bytes(images: Sequence[PreparedImage], slots: int, channels: int) -> tuple[bytes, int]:
    """The file, and how many of its bytes are text."""
    images = sorted(images, key=lambda image: (image.slot, image.key, image.sha256, image.row))
    texts = [f"{image.source}\0{image.label or ''}".encode() for image in images]
    rows = [
        (i.key, i.sha256, i.partition, i.row, len(text), len(i.png), zlib.crc32(i.png), i.sums)
        for i, text in zip(images, texts, strict=True)
    ]
    records = np.array(rows, record_type(channels))
    before = np.zeros((slots + 1, 3), "<i8")
    lengths = np.stack([np.ones(len(images), np.int64), records["text"], records["png"]], axis=1)
    np.add.at(before, np.array([image.slot + 1 for image in images], np.int64), lengths)
    before = before.cumsum(0, dtype="<i8")
    parts = [before.tobytes(), records.tobytes(), *texts, *(image.png for image in images)]
    return b"".join(parts), sum(map(len, texts))


@dataclass(frozen=True)
class Gathered:
    """The images of some slots from every run, run by run. images: None when they were not asked for."""

    records: Records
    sources: list[str]
    labels: list[str | None]
    images: list[bytes] | None


def gather(store: Store, runs: Sequence[RunFile], slots: range, shape: tuple[int, int], images: bool) -> Gathered:
    """Raises NotFound, Transient; VerificationFailed when an image is not what was written.

    shape: (number of slots, channels) of the ingest.
    """
    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(lambda run: _read(store, run, slots, shape, images), runs))
    records = np.concatenate([part[0] for part in read] or [np.zeros(0, record_type(shape[1]))])
    texts = [text.partition("\0") for part in read for text in _cut(part[1], part[0]["text"])]
    blobs = [blob for part in read for blob in _images(part[2], part[0])] if images else None
    return Gathered(records, [text[0] for text in texts], [text[2] or None for text in texts], blobs)


def _read(
    store: Store, run: RunFile, slots: range, shape: tuple[int, int], images: bool
) -> tuple[Records, bytes, bytes]:
    """Records, texts and (or nothing) images of these slots."""
    kind = record_type(shape[1])

    def read(offset: int, length: int) -> bytes:
        data = store.read_range(run.key, offset, length) if length else b""
        if len(data) != length:
            raise VerificationFailed(f"{store.location(run.key)} is shorter than it was written: check the storage")
        return data

    before = np.frombuffer(read(slots.start * 24, (len(slots) + 1) * 24), "<i8").reshape(-1, 3)
    (row, text, png), (stop, text_stop, png_stop) = before[0].tolist(), before[-1].tolist()
    records_at = (shape[0] + 1) * 24
    texts_at = records_at + run.rows * kind.itemsize
    images_at = texts_at + run.text_bytes
    records = np.frombuffer(read(records_at + row * kind.itemsize, (stop - row) * kind.itemsize), kind)
    texts = read(texts_at + text, text_stop - text)
    return records, texts, read(images_at + png, png_stop - png) if images else b""


def _cut(texts: bytes, lengths: npt.NDArray[np.uint32]) -> Iterator[str]:
    stop = 0
    for length in lengths.tolist():
        stop += length
        yield texts[stop - length : stop].decode()


def _images(blob: bytes, records: Records) -> Iterator[bytes]:
    stop = 0
    for length, crc in zip(records["png"].tolist(), records["crc"].tolist(), strict=True):
        stop += length
        png = blob[stop - length : stop]
        if zlib.crc32(png) != crc:
            raise VerificationFailed("a prepared image changed between the passes of the ingest: check the storage")
        yield png
