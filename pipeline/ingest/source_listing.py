"""Snapshots: lists of the source files that a dataset version read, with names, sizes and versions, by partition.

A snapshot is written before any file is read, so that a killed ingest continues with the same work. It is kept, so that
the next dataset version knows which files are new.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.base import FileEntry
from pipeline.ingest.sources.source import Partition, SourceFile
from pipeline.storage.files import parquet_bytes, put_hashed, read_parquet
from pipeline.storage.store import Store

FILES_A_PART = 50_000
_FILE = pa.struct([("key", pa.binary()), ("size", pa.int64()), ("version", pa.string())])
SNAPSHOT = pa.schema(
    [
        pa.field("id", pa.binary(), nullable=False),  # names are bytes: not every file name is UTF-8
        pa.field("first_row", pa.int64()),  # set where a partition is a row range of one file
        pa.field("stop_row", pa.int64()),
        pa.field("files", pa.list_(_FILE), nullable=False),
        pa.field("labels", pa.list_(pa.binary())),  # one a file, set where the source is a list with labels
    ]
)


@dataclass(frozen=True)
class Snapshot:
    """A stored snapshot and its totals.

    digest: sha256 (hex) of the files' fingerprints and labels; it does not depend on the cut into partitions. rows: the
    number of images as far as listing the source reveals it (a file without a row range counts as one).
    """

    digest: str
    parts: tuple[FileEntry, ...]
    partitions: int
    rows: int
    file_bytes: int


class SnapshotTotals:
    """Accumulates the digest and totals of a Snapshot over its partitions."""

    def __init__(self) -> None:
        self.partitions = self.rows = self.file_bytes = 0
        self._hash = hashlib.sha256()
        self._before: set[tuple[str, str | None]] = set()  # files of the last partition: row ranges of a file follow it

    def add(self, partition: Partition) -> None:
        self.partitions += 1
        self.rows += len(partition.files) if partition.rows is None else len(partition.rows)
        labels = partition.labels or (None,) * len(partition.files)
        states = [(file.fingerprint, label) for file, label in zip(partition.files, labels, strict=True)]
        for file, state in zip(partition.files, states, strict=True):
            if state not in self._before:
                self._hash.update(f"{state}\n".encode("utf-8", "surrogateescape"))
                self.file_bytes += max(file.size, 0)
        self._before = set(states)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def write_snapshot(store: Store, version: int, partitions: Iterable[Partition]) -> Snapshot:
    """Store the partitions under `snapshots/`, in files of about FILES_A_PART entries, which bounds the memory."""
    totals, parts, table, in_table = SnapshotTotals(), list[FileEntry](), list[Partition](), 0
    for partition in partitions:
        totals.add(partition)
        table.append(partition)
        in_table += len(partition.files)
        if in_table >= FILES_A_PART:
            parts.append(_write(store, version, len(parts), table))
            table, in_table = [], 0
    if table:
        parts.append(_write(store, version, len(parts), table))
    return Snapshot(totals.digest, tuple(parts), totals.partitions, totals.rows, totals.file_bytes)


def snapshot_digest(partitions: Iterable[Partition]) -> str:
    """The digest that `write_snapshot` computes for these partitions."""
    totals = SnapshotTotals()
    for partition in partitions:
        totals.add(partition)
    return totals.digest


def _write(store: Store, version: int, number: int, partitions: Sequence[Partition]) -> FileEntry:
    table = pa.Table.from_pylist([_row(partition) for partition in partitions], schema=SNAPSHOT)
    return put_hashed(store, f"snapshots/{version:06d}-{number:05d}", parquet_bytes(table, 1000))


def _row(partition: Partition) -> dict[str, object]:
    rows = partition.rows
    return {
        "id": _bytes(partition.id),
        "first_row": None if rows is None else rows.start,
        "stop_row": None if rows is None else rows.stop,
        "files": [{"key": _bytes(file.key), "size": file.size, "version": file.version} for file in partition.files],
        "labels": partition.labels and [label if label is None else _bytes(label) for label in partition.labels],
    }


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _name(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def read_snapshot(store: Store, parts: Iterable[FileEntry]) -> Iterator[Partition]:
    """The partitions of stored snapshot files, in order."""
    for part in parts:
        for row in read_parquet(store, part).to_pylist():
            files = tuple(SourceFile(_name(file["key"]), file["size"], file["version"]) for file in row["files"])
            rows = None if row["first_row"] is None else range(row["first_row"], row["stop_row"])
            labels = row["labels"]
            names = labels if labels is None else tuple(x if x is None else _name(x) for x in labels)
            yield Partition(_name(row["id"]), files, rows, names)


class KnownFiles:
    """The files that a dataset has read, and which of them were seen again in the source. 16 bytes a file.

    `fingerprint in known` marks the file as seen.
    """

    def __init__(self, store: Store, parts: Iterable[FileEntry]) -> None:
        prints = [np.array([], "S16")]
        for partition in read_snapshot(store, parts):
            prints.append(np.array([bytes.fromhex(file.fingerprint) for file in partition.files], "S16"))
        self._prints = np.unique(np.concatenate(prints))
        self._seen = np.zeros(len(self._prints), np.bool_)

    def __contains__(self, fingerprint: object) -> bool:
        wanted = np.array(bytes.fromhex(str(fingerprint)), "S16")
        index = int(np.searchsorted(self._prints, wanted))
        if index == len(self._prints) or self._prints[index] != wanted:
            return False
        self._seen[index] = True
        return True

    def mark_seen(self, files: Iterable[SourceFile]) -> None:
        """Mark known files as still in the source."""
        for file in files:
            _ = file.fingerprint in self

    @property
    def unseen(self) -> int:
        """Number of known files that are missing from the source, or changed."""
        return int((~self._seen).sum())
