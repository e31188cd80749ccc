"""Findings of `ddpm verify`: contradictions within an artefact, and counts of what was checked."""

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

T = TypeVar("T")

Decode = Callable[[bytes], NDArray[np.uint8]]
"""An image file to its pixels [H, W, C]; raises DataError."""

MAX_MESSAGES = 100
_FAULTS = (DataError, NotFound, VerificationFailed)


@dataclass
class Findings:
    """`messages`: the first 100 findings; `total`: number of findings; `counts`: number of checked things by kind."""

    messages: list[str] = field(default_factory=list)
    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        self.total += 1
        if len(self.messages) < MAX_MESSAGES:
            self.messages.append(text)

    def expect(self, condition: bool, text: str) -> None:
        """Note `text` unless the condition holds."""
        if not condition:
            self.add(text)

    def attempt(self, read: Callable[[], T]) -> T | None:
        """The result of `read`, or None and a finding when it raises an error about the artefact."""
        try:
            return read()
        except _FAULTS as error:
            self.add(str(error))
            return None

    @contextmanager
    def record_errors(self) -> Iterator[None]:
        """An error of the block about the artefact becomes a finding; other errors, such as Transient, are raised."""
        try:
            yield
        except _FAULTS as error:
            self.add(str(error))

    def file(self, store: Store, entry: FileEntry) -> bytes | None:
        """The bytes of a file that matches its entry, or None and a finding; counts files and bytes."""
        self.counts["files"] += 1
        self.counts["bytes"] += entry.bytes
        return self.attempt(lambda: read_verified(store, entry))

    def table(
        self, store: Store, entry: FileEntry, schema: pa.Schema, allow_missing_nullable: bool = False
    ) -> pa.Table | None:
        """The rows of a file that has the sha256 of its entry and this schema, or None and a finding.

        allow_missing_nullable: nullable columns may be absent, since files of earlier releases have fewer columns.
        """
        where = store.location(entry.key)
        data = self.file(store, entry)
        if data is None:
            return None
        try:
            table = decode_shard(entry.key, data)
        except DataError as error:
            self.add(f"{where} {error}")
            return None
        except (pa.ArrowException, OSError) as error:
            self.add(f"{where} is not a Parquet file: {error}")
            return None
        optional = {column.name for column in schema if allow_missing_nullable and column.nullable}
        absent = optional - {*table.column_names}
        if not table.schema.equals(pa.schema([column for column in schema if column.name not in absent])):
            self.add(f"{where} has columns {table.schema.names}, with other names or types than {schema.names}")
            return None
        return table

    def pixels(self, where: str, data: bytes, shape: tuple[int, int, int], decode: Decode) -> NDArray[np.uint8] | None:
        """The pixels of an image that has this shape [H, W, C], or None and a finding."""
        try:
            pixels = decode(data)
        except DataError as error:
            self.add(f"{where} cannot be decoded: {error}")
            return None
        if pixels.shape != shape:
            self.add(f"{where} has {list(pixels.shape)} pixels, not {list(shape)}")
            return None
        return pixels
