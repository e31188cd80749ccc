"""Source of files with many images each (tar, zip, npz, Parquet): all that does not depend on the file format."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import DataError, StorageError
from pipeline.images.file_types import Kind, describe_head, kind_of
from pipeline.images.reject_reasons import Reason, Reject
from pipeline.ingest.sources.labels import NO_INFO, SourceInfo
from pipeline.ingest.sources.read import as_reject, new_files, read_head
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.ingest.sources.splits import Role, Roles, named_split, split_in_name
from pipeline.storage.store import Store


class UnusableFile(DataError):
    """A whole file, or the rest of it after a damage, cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reject = Reject(reason, detail)


class Reader(Protocol):
    """Reads one file format. A small value, sent to every task."""

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        """Ranges of rows for one task each, or None for the whole file. Raises UnusableFile, StorageError."""
        ...

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        """The rows of one range. Raises UnusableFile where the file breaks, StorageError."""
        ...


@dataclass(frozen=True)
class ContainerSource:
    """One file, or all files of a folder. files: None lists the folder. kind: file type that the reader reads.

    roles: what becomes of the splits that file names contain. skipped: files beside the images that are left out.
    """

    name: str
    store: Store
    kind: Kind
    reader: Reader
    classes: tuple[str, ...] | None = None
    files: tuple[SourceFile, ...] | None = None
    roles: Roles = ()
    skipped: tuple[str, ...] = ()
    info: SourceInfo = NO_INFO

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        for file in new_files(self.store, self.files, known):
            if file.key in self.skipped or self._role(file.key) == "out":
                continue
            for row_range in self._row_ranges(file):
                part = "" if row_range is None else f"[{row_range.start}:{row_range.stop}]"
                yield Partition(file.key + part, (file,), row_range)

    def _role(self, key: str) -> Role | None:
        return dict(self.roles).get(split_in_name(key) or "") if self.roles else None

    def _row_ranges(self, file: SourceFile) -> list[range | None]:
        try:
            return [None] if file.size <= 0 else list(self.reader.row_ranges(self.store, file))
        except UnusableFile:
            return [None]  # the task that reads the file meets the error again and makes it a reject
        except StorageError as error:
            as_reject(self.store, error)
            return [None]

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        (file,) = partition.files
        if file.size < 0:
            yield SourceRow(file.key, Reject("unsafe-member", f"{self.store.location(file.key)} is {file.version}"))
            return
        if file.size == 0:
            yield SourceRow(file.key, Reject("empty", "the file has no bytes"))
            return
        started, role = False, self._role(file.key)
        try:
            for row in self.reader.rows(self.store, file, partition.rows):
                started = True
                yield row._replace(split=named_split(role, self.roles)) if role else row
        except UnusableFile as error:
            other = None if started else self._another_kind(file)
            yield SourceRow(file.key, other or error.reject)
        except StorageError as error:
            yield SourceRow(file.key, as_reject(self.store, error))

    def _another_kind(self, file: SourceFile) -> Reject | None:
        """A better reject for a file of another kind, such as a README among shards."""
        head = read_head(self.store, file)
        if kind_of(head) in (self.kind, "unknown", "empty"):
            return None
        return Reject("not-an-image", f"{describe_head(head)} among files of another kind ({self.kind})")
