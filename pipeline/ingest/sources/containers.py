"""Files that hold many images each: what tar, zip, npz and Parquet sources share."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import DataError, StorageError
from pipeline.images.file_types import Kind, kind_of, shown
from pipeline.images.reject_reasons import Reason, Reject
from pipeline.ingest.sources.archive_names import is_hidden, is_plain
from pipeline.ingest.sources.read import head_of, refused
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store

__all__ = ["ContainerSource", "Reader", "Unfit", "visible_files"]


_NO_PLAIN_KEY = "an object whose name has an empty part, '.' or '..'"


class Unfit(DataError):
    """A whole file cannot be used, or the rest of it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.refusal = Reject(reason, detail)


class Reader(Protocol):
    """How one kind of file is read; a small value."""

    def shares(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        """The file cut for several tasks, or None for all of it. Raises Unfit, StorageError."""
        ...

    def rows(self, store: Store, file: SourceFile, share: range | None) -> Iterator[SourceRow]:
        """The rows of one share. Raises Unfit for the rest of them, StorageError."""
        ...


@dataclass(frozen=True)
class ContainerSource:
    """One such file, or every file of a folder; `files`: only these (None: what is listed)."""

    name: str
    store: Store
    kind: Kind
    reader: Reader
    classes: tuple[str, ...] | None = None
    files: tuple[SourceFile, ...] | None = None

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        for file in visible_files(self.store) if self.files is None else self.files:
            if file.fingerprint in known:
                continue
            for share in self._shares(file):
                part = "" if share is None else f"[{share.start}:{share.stop}]"
                yield Partition(file.key + part, (file,), share)

    def _shares(self, file: SourceFile) -> list[range | None]:
        try:
            return [None] if file.size <= 0 else list(self.reader.shares(self.store, file))
        except Unfit:
            return [None]  # the task that reads it says so again, as a row
        except StorageError as error:
            refused(self.store, error)
            return [None]

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        (file,) = partition.files
        if file.size < 0:
            yield SourceRow(file.key, Reject("unsafe-member", f"{self.store.location(file.key)} is {file.version}"))
            return
        if file.size == 0:
            yield SourceRow(file.key, Reject("empty", "the file has no bytes"))
            return
        started = False
        try:
            for row in self.reader.rows(self.store, file, partition.rows):
                started = True
                yield row
        except Unfit as error:
            other = None if started else self._another_kind(file)
            yield SourceRow(file.key, other or error.refusal)
        except StorageError as error:
            yield SourceRow(file.key, refused(self.store, error))

    def _another_kind(self, file: SourceFile) -> Reject | None:
        """A README among shards is no damaged shard."""
        head = head_of(self.store, file)
        if kind_of(head) in (self.kind, "unknown", "empty"):
            return None
        return Reject("not-an-image", f"{shown(head)} among files of another kind ({self.kind})")


def visible_files(store: Store) -> Iterator[SourceFile]:
    """Every file under the root that is not hidden (no part of its name begins with a dot), in key order."""
    for state in store.states():
        if not is_hidden(state.key):
            yield SourceFile(*state) if is_plain(state.key) else SourceFile(state.key, -1, _NO_PLAIN_KEY)
