"""Content decides where an image goes: its split, its position in the shuffle, its shard. Pure arithmetic on hashes.

The shuffle key of an image is the first 64 bits of sha256("seed:sha256 of its pixels"). Images are stored in order of
their keys, so the order is a uniform shuffle that depends on contents and seed, not on names, files or tasks.

A slot is one of many equal ranges of keys, small enough for one task to hold. Equal pixels have equal keys, so all
duplicates of an image fall into one slot. The number of images kept in the slots before it numbers every image:

    key -> slot -> (images kept in each slot) -> sample id = images in earlier slots + rank in its slot -> shard
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.ingest.manifest import Split

Duplicates = Literal["keep-first", "keep-all", "reject"]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Records = npt.NDArray[np.void]

SLOT_BYTES = 4 * 2**20
MIN_SLOTS, MAX_SLOTS = 16, 4096
ROW_STEP = 64
"""Shards limited by bytes have a multiple of this many rows, so that cutting micro-batches leaves few rows over."""


def is_heldout(sha256: str, share: float) -> bool:
    """Whether an image with these pixels (sha256, hex) is held out from training: a function of its content only."""
    return int(sha256[:16], 16) < share * 2.0**64


def shuffle_key(sha256: str, seed: int) -> int:
    """The 64-bit sort key of an image with these pixels (sha256, hex)."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sha256}".encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Slots:
    """How many slots the keys of each split are divided into. Training slots are numbered first."""

    train: int
    heldout: int

    @classmethod
    def for_bytes(cls, estimate: int, heldout_share: float) -> "Slots":
        """Enough slots that each holds about SLOT_BYTES of `estimate` bytes, within MIN_SLOTS..MAX_SLOTS."""
        train = min(max(-(-estimate // SLOT_BYTES), MIN_SLOTS), MAX_SLOTS)
        heldout = round(train * heldout_share / (1.0 - heldout_share))
        return cls(train, min(max(heldout, 1), MAX_SLOTS) if heldout_share else 0)

    @property
    def count(self) -> int:
        return self.train + self.heldout

    def of(self, sha256: str, key: int, heldout_share: float, split: str | None = None) -> int:
        """The slot of an image. split: the one that its source names; without one, the content decides."""
        if split == "heldout" or (split is None and is_heldout(sha256, heldout_share)):
            return self.train + (key * self.heldout >> 64)
        return key * self.train >> 64

    def ranges(self, split: Split, size: int) -> Iterator[range]:
        """The slots of one split, `size` at a time."""
        first, stop = (0, self.train) if split == "train" else (self.train, self.count)
        for start in range(first, stop, size):
            yield range(start, min(start + size, stop))

    def keys(self, slots: range) -> tuple[int, int]:
        """First and last key that fall into these slots of one split."""
        first, count = (0, self.train) if slots.start < self.train else (self.train, self.heldout)
        low, high = slots.start - first, slots.stop - first
        return -(-(low << 64) // count), -(-(high << 64) // count) - 1


def shuffle_order(records: Records) -> Int64Array:
    """Indices that sort records (fields key, sha256 V32, partition, row) by key, equal pixels by source order."""
    words = np.ascontiguousarray(records["sha256"]).view(">u8").reshape(-1, 4)
    # Different keys mean different pixels; the words only separate images whose 64-bit keys happen to be equal.
    fields = (records["row"], records["partition"], *words.T[::-1], records["key"])
    return np.lexsort(fields).astype(np.int64)


def keep_mask(records: Records, known: set[bytes], policy: Duplicates) -> BoolArray:
    """Which records, sorted by `shuffle_order`, stay. known: sha256 digests that the dataset already holds.

    keep-first: the first of equal pixels in source order, if the dataset has none. reject: only pixels that occur once
    and are new. keep-all: every record.
    """
    count = len(records)
    if policy == "keep-all" or count == 0:
        return np.ones(count, np.bool_)
    digests = np.ascontiguousarray(records["sha256"])
    begins = np.ones(count, np.bool_)
    words = digests.view("<u8").reshape(-1, 4)
    begins[1:] = (words[1:] != words[:-1]).any(1)
    keep = begins.copy()
    if policy == "reject":
        keep[:-1] &= begins[1:]
    if known:
        keep &= np.fromiter((digest.tobytes() not in known for digest in digests), np.bool_, count)
    return keep


def rows_per_shard(rows: int, image_bytes: int, shard_rows: int, shard_bytes: int) -> int:
    """Images a shard: `shard_rows`, or fewer where images of the mean size would exceed `shard_bytes`."""
    fit = shard_bytes * rows // max(image_bytes, 1)
    if fit >= shard_rows:
        return shard_rows
    return max(fit // ROW_STEP * ROW_STEP, 1) if fit >= ROW_STEP else max(fit, 1)


@dataclass(frozen=True)
class ShardGroup:
    """Neighbouring shards that one task writes: images first..stop-1 of their split.

    The images lie in `slots`, behind `skip` images of earlier shards. `before`: number of images of this dataset
    version in the split before this one.
    """

    split: Split
    before: int
    shard: int  # number of the first shard
    first: int
    stop: int
    slots: range
    skip: int


class Piece(NamedTuple):
    """Rows first..stop-1 of some parts end to end. The rows lie in `parts`, behind `skip` rows of the first of them."""

    first: int
    stop: int
    parts: range
    skip: int


def pieces(rows: Sequence[int] | Int64Array, size: int) -> Iterator[Piece]:
    """Cut parts with these numbers of rows, put end to end, into pieces of `size` rows."""
    ends = np.concatenate([[0], np.cumsum(np.asarray(rows, np.int64))])
    total = int(ends[-1])
    for first in range(0, total, size):
        stop = min(first + size, total)
        low = int(np.searchsorted(ends, first, side="right")) - 1
        high = int(np.searchsorted(ends, stop, side="left"))
        yield Piece(first, stop, range(low, high), first - int(ends[low]))


def shard_groups(in_slots: Int64Array, slots: Slots, shard_rows: int, shards_a_group: int) -> Iterator[ShardGroup]:
    """Every shard of both splits, once. in_slots: int64 [slots.count], number of images kept in each slot."""
    parts: tuple[tuple[Split, int, int], ...] = (("train", 0, slots.train), ("heldout", slots.train, slots.count))
    before = 0
    for split, begin, end in parts:
        for first, stop, found, skip in pieces(in_slots[begin:end], shard_rows * shards_a_group):
            slots_found = range(begin + found.start, begin + found.stop)
            yield ShardGroup(split, before, first // shard_rows, first, stop, slots_found, skip)
        before += int(in_slots[begin:end].sum())
