"""What a source of images is: files, cut into partitions, each a stream of rows.

A `Source` and its partitions are small values: listed once on the driver, read by any process. Rows and partitions come
in an order that depends on the names and contents of the files only.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.images.reject_reasons import Reject

__all__ = ["Partition", "Pixels", "Source", "SourceFile", "SourceRow", "class_names", "cut"]

_FORWARD_SHARES = 16

Pixels = npt.NDArray[np.uint8]


class SourceFile(NamedTuple):
    """One input file as it was listed. `version` changes when its bytes do: ETag, or time of last change."""

    key: str
    size: int
    version: str

    @property
    def fingerprint(self) -> str:
        """16 bytes (hex) that name this state of this file."""
        return _digest(repr(tuple(self)))


class SourceRow(NamedTuple):
    """One row: its name, unique and lasting in the source; an encoded image, uint8 pixels [H, W] or [H, W, C], or the
    reason why there is neither; its class name."""

    source: str
    image: bytes | Pixels | Reject
    label: str | None = None


@dataclass(frozen=True)
class Partition:
    """Files that one task reads, or some rows of one large file."""

    id: str
    files: tuple[SourceFile, ...]
    rows: range | None = None
    labels: tuple[str | None, ...] | None = None  # of the files, where a list gives them

    @property
    def fingerprint(self) -> str:
        """16 bytes (hex): equal for equal rows, as far as names, sizes and versions tell."""
        return _digest(repr((self.id, *map(tuple, self.files), self.rows, self.labels)))


class Source(Protocol):
    """`name`: where it is, absolute. `classes`: class names in the order of their numbers, None where only the rows
    tell (see `class_names`)."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        """Shares that together hold every row once, but for files whose fingerprint is in `known`."""
        ...

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        """The rows of a partition. Raises StorageError when the store fails, never for what a file holds."""
        ...


def class_names(labels: set[str], known: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
    """Names in the order of their numbers, from all labels of the rows: the known ones (`Source.classes`), then others.

    Without known ones integers keep their number; names are sorted. None when there are no labels.
    """
    if known is not None:
        return (*known, *sorted(labels - set(known)))
    if not labels:
        return None
    if all(label.isascii() and label.isdigit() and str(int(label)) == label for label in labels):
        largest = max(map(int, labels))
        if largest < max(1000, 10 * len(labels)):  # else they are names that happen to be digits
            return tuple(str(number) for number in range(largest + 1))
    return tuple(sorted(labels))


def cut(count: int, size: int, forward: bool = False) -> list[range]:
    """0..count-1 in shares of `size`; of what can only be read from its front, a few large ones."""
    size = max(size, -(-count // _FORWARD_SHARES)) if forward else size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
