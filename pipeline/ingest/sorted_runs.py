"""Sorted runs (as in external sorting): files of prepared images between the two passes of an ingest, sorted by slot.

    header     int64 [slots + 1, 3], little-endian: records, text bytes and image bytes in the slots before each slot
    records    one of fixed size for each image (`RunFormat.record`)
    texts      source name, NUL, label (empty where there is none), UTF-8
    images     PNG

Because a slot is one range of each section, a reader of some slots takes four ranges, whatever the size of the file. A
sorted run lives in the work folder of one ingest and is never read by another version of the program.
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

READERS = 8
HEADER_ROW_BYTES = 3 * 8
Records = npt.NDArray[np.void]


class PreparedImage(NamedTuple):
    """A decoded, resized and hashed image.

    key, sha256 (32 bytes) and sums (levels, then squared levels, by channel) follow from the pixels; source is its name
    in the source, partition and row its position there.
    """

    slot: int
    key: int
    sha256: bytes
    partition: int
    row: int
    sums: tuple[int, ...]
    source: str
    label: str | None
    png: bytes


class SortedRunFile(FileEntry):
    """A sorted run as a marker names it."""

    rows: int
    text_bytes: int


class RunFormat(NamedTuple):
    """The numbers on which the layout of the sorted runs of one ingest depends."""

    slots: int
    channels: int

    @property
    def record(self) -> np.dtype[np.void]:
        """sums: of levels, then of squared levels, by channel; text, png: lengths in bytes; crc: CRC-32 of the PNG."""
        fields: list[Any] = [("key", "<u8"), ("sha256", "V32"), ("partition", "<u4"), ("row", "<u4")]
        fields += [("text", "<u4"), ("png", "<u4"), ("crc", "<u4"), ("sums", "<i8", (2 * self.channels,))]
        return np.dtype(fields)


def sorted_run_bytes(images: Sequence[PreparedImage], layout: RunFormat) -> tuple[bytes, int]:
    """The file, and how many of its bytes are text."""
    images = sorted(images, key=lambda image: (image.slot, image.key, image.sha256, image.row))
    texts = [f"{image.source}\0{image.label or ''}".encode() for image in images]
    rows = [
        (i.key, i.sha256, i.partition, i.row, len(text), len(i.png), zlib.crc32(i.png), i.sums)
        for i, text in zip(images, texts, strict=True)
    ]
    records = np.array(rows, layout.record)
    before = np.zeros((layout.slots + 1, 3), "<i8")
    lengths = np.stack([np.ones(len(images), np.int64), records["text"], records["png"]], axis=1)
    np.add.at(before, np.array([image.slot + 1 for image in images], np.int64), lengths)
    before = before.cumsum(0, dtype="<i8")
    parts = [before.tobytes(), records.tobytes(), *texts, *(image.png for image in images)]
    return b"".join(parts), sum(map(len, texts))


@dataclass(frozen=True)
class SlotContents:
    """All images of some slots, one sorted run after another. images (PNG) is empty when only records were read."""

    records: Records
    sources: list[str]
    labels: list[str | None]
    images: list[bytes]


def read_slots(
    store: Store, runs: Sequence[SortedRunFile], slots: range, layout: RunFormat, *, images: bool
) -> SlotContents:
    """Read some slots from every sorted run.

    Raises NotFound, Transient, and VerificationFailed when an image differs from the one that was written.
    """
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda run: _read_range(store, run, slots, layout, images), runs))
    texts = [text.partition("\0") for part in parts for text in part.split_texts()]
    return SlotContents(
        np.concatenate([part.records for part in parts] or [np.zeros(0, layout.record)]),
        [text[0] for text in texts],
        [text[2] or None for text in texts],
        [png for part in parts for png in part.split_images()] if images else [],
    )


class _RunRange(NamedTuple):
    """Some slots of one sorted run: the records, and their texts and images end to end."""

    records: Records
    texts: bytes
    images: bytes

    def split_texts(self) -> Iterator[str]:
        stop = 0
        for length in self.records["text"].tolist():
            stop += length
            yield self.texts[stop - length : stop].decode()

    def split_images(self) -> Iterator[bytes]:
        stop = 0
        for length, crc in zip(self.records["png"].tolist(), self.records["crc"].tolist(), strict=True):
            stop += length
            png = self.images[stop - length : stop]
            if zlib.crc32(png) != crc:
                raise VerificationFailed("a prepared image changed between the passes of the ingest: check the storage")
            yield png


def _read_range(store: Store, run: SortedRunFile, slots: range, layout: RunFormat, images: bool) -> _RunRange:
    def read(offset: int, length: int) -> bytes:
        data = store.read_range(run.key, offset, length) if length else b""
        if len(data) != length:
            raise VerificationFailed(f"{store.location(run.key)} is shorter than it was written: check the storage")
        return data

    header = read(slots.start * HEADER_ROW_BYTES, (len(slots) + 1) * HEADER_ROW_BYTES)
    before = np.frombuffer(header, "<i8").reshape(-1, 3)
    (row, text, png), (stop, text_stop, png_stop) = before[0].tolist(), before[-1].tolist()
    record = layout.record
    records_at = (layout.slots + 1) * HEADER_ROW_BYTES
    texts_at = records_at + run.rows * record.itemsize
    images_at = texts_at + run.text_bytes
    records = np.frombuffer(read(records_at + row * record.itemsize, (stop - row) * record.itemsize), record)
    texts = read(texts_at + text, text_stop - text)
    return _RunRange(records, texts, read(images_at + png, png_stop - png) if images else b"")
