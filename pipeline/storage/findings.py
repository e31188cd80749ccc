"""What a verification notes while it goes through an artefact."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.base import FileEntry
from pipeline.errors import DataError, NotFound, VerificationFailed
from pipeline.storage.files import read_verified
from pipeline.storage.sample_shards import decode_shard
from pipeline.storage.store import Store

__all__ = ["Decode", "Findings"]

T = TypeVar("T")

Decode = Callable[[bytes], NDArray[np.uint8]]
"""An image file to its pixels [H, W, C]; raises DataError."""

MAX_KEPT = 100
_FAULTS = (DataError, NotFound, VerificationFailed)


@dataclass
class Findings:
    """`kept`: the first contradictions in words; `total`: how many there are; `counts`: what was looked at."""

    kept: list[str] = field(default_factory=list)
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        self.total += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(text)

    def expect(self, condition: bool, text: str) -> None:
        """Note `text` unless the condition holds."""
        if not condition:
            self.add(text)

    def attempt(self, read: Callable[[], T]) -> T | None:
        """What `read` returns, or None and a finding."""
        try:
            return read()
        except _FAULTS as error:
            self.add(str(error))
            return None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What the block raises about the artefact becomes a finding; a store that does not answer stays an error."""
        try:
            yield
        except _FAULTS as error:
            self.add(str(error))

    def table(self, store: Store, entry: FileEntry, schema: pa.Schema, grown: bool = False) -> pa.Table | None:
        """A file with the hash that its manifest names and the schema that its kind has, or None and a finding.

        grown: the kind got its nullable columns over time, so that an older file may lack them.
        """
        where = store.location(entry.key)
        self.counts["files"] += 1
        self.counts["bytes"] += entry.bytes
        data = self.attempt(lambda: read_verified(store, entry))
        if data is None:
            return None
        try:
            table = decode_shard(entry.key, data)
        except DataError as error:
            self.add(f"{where} {error}")
            return None
        except (pa.ArrowException, OSError) as error:
            self.add(f"{where} is no Parquet file: {error}")
            return None
        expected = [field for field in schema if not grown or not field.nullable or field.name in table.column_names]
        if not table.schema.equals(pa.schema(expected)):
            self.add(f"{where} has columns {table.schema.names}, with other names or types than its kind")
            return None
        return table

    def pixels(self, where: str, data: bytes, shape: tuple[int, int, int], decode: Decode) -> NDArray[np.uint8] | None:
        """The pixels of an image of this shape, or None and a finding."""
        try:
            pixels = decode(data)
        except DataError as error:
            self.add(f"{where} cannot be decoded: {error}")
            return None
        if pixels.shape != shape:
            self.add(f"{where} has {list(pixels.shape)} pixels, not {list(shape)}")
            return None
        return pixels
