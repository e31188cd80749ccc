"""A folder of image files; the first sub-folder of a file is its class."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from pipeline.errors import NotFound, StorageError
from pipeline.refusals import Refusal
from pipeline.storage.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store

__all__ = ["FolderSource"]


@dataclass(frozen=True)
class FolderSource:
    """Every file under the folder is a row, except hidden ones."""

    store: Store
    classes: tuple[str, ...] | None
    partition_rows: int

    @property
    def name(self) -> str:
        return self.store.uri

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        group: list[SourceFile] = []
        for file in files_of(self.store):
            if file.fingerprint in known:
                continue
            group.append(file)
            if len(group) == self.partition_rows:
                yield Partition(group[0].key, tuple(group))
                group = []
        if group:
            yield Partition(group[0].key, tuple(group))

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        for file in partition.files:
            folder, inside, _ = file.key.partition("/")
            yield SourceRow(file.key, _image(self.store, file.key), folder if inside else None)


def files_of(store: Store) -> Iterator[SourceFile]:
    """Every file that is not hidden, in key order."""
    for entry in store.list():
        if not any(part.startswith(".") for part in entry.key.split("/")):
            yield SourceFile(entry.key, entry.size, "")


def _image(store: Store, key: str) -> bytes | Refusal:
    try:
        return store.read(key)
    except NotFound as error:
        return Refusal("missing", str(error))
    except StorageError as error:
        if store.kind != "local":
            raise
        return Refusal("unreadable", str(error))
