"""The interface of all image sources: input files, cut into partitions, each of which yields rows.

A `Source` and its partitions are small values: the driver lists them once, and any process can read them. The order of
rows and partitions depends only on the names and contents of the files.

A new kind of source: a module with a class that implements `Source` (or, for files with many images each,
`containers.Reader`), chosen in open.py.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.images.png import Pixels
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.labels import SourceInfo

_MOST_SEQUENTIAL_CHUNKS = 16


class SourceFile(NamedTuple):
    """One input file as it was listed. version: ETag or modification time, so it changes when the content does.

    A negative size marks an entry that cannot be read: `version` then holds the reason.
    """

    key: str
    size: int
    version: str

    @property
    def fingerprint(self) -> str:
        """16 bytes (hex) that identify this state of this file."""
        return hashlib.sha256(repr(tuple(self)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class SourceRow(NamedTuple):
    """One row of a source.

    source: its name, unique and stable within the source. image: an encoded image, uint8 pixels [H, W] or [H, W, C], or
    the reason why there is neither. label: its class name. split: "train" or "heldout" where the source names splits.
    """

    source: str
    image: bytes | Pixels | Reject
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Partition:
    """Input of one task: some files, or a range of rows of one large file (with the file of its labels, if any)."""

    id: str
    files: tuple[SourceFile, ...]
    rows: range | None = None
    labels: tuple[str | None, ...] | None = None  # one a file, where the source is a list with labels


class Source(Protocol):
    """name: absolute URI. classes: class names in the order of their numbers, or None when only reading the rows shows
    them (see `labels.class_names`). info: what was found, for summaries."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def info(self) -> SourceInfo: ...

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        """Partitions that together hold every row once, except rows of files whose fingerprint is in `known`."""
        ...

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        """The rows of a partition. Raises StorageError when the store fails; bad content becomes a Reject."""
        ...


def chunk_rows(count: int, size: int, sequential: bool = False) -> list[range]:
    """0..count-1 in ranges of `size`; a few large ones for data that can only be read from its start."""
    size = max(size, -(-count // _MOST_SEQUENTIAL_CHUNKS)) if sequential else size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
