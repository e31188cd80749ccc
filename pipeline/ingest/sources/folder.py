"""A folder of image files; the first sub-folder of a file is its class, however deep the file lies."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from pipeline.ingest.sources.archive_names import label_of
from pipeline.ingest.sources.containers import visible_files
from pipeline.ingest.sources.read import read_images
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store

__all__ = ["FolderSource", "open_folder"]


@dataclass(frozen=True)
class FolderSource:
    """Every file under the folder is a row, except hidden ones; `files`: only these (None: what is listed)."""

    name: str
    store: Store
    classes: tuple[str, ...] | None
    partition_rows: int
    max_bytes: int
    files: tuple[SourceFile, ...] | None = None

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        group: list[SourceFile] = []
        for file in visible_files(self.store) if self.files is None else self.files:
            if file.fingerprint in known:
                continue
            group.append(file)
            if len(group) == self.partition_rows:
                yield Partition(group[0].key, tuple(group))
                group = []
        if group:
            yield Partition(group[0].key, tuple(group))

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        images = read_images(((self.store, file) for file in partition.files), self.max_bytes)
        for file, image in zip(partition.files, images, strict=True):
            yield SourceRow(file.key, image, label_of(file.key))


def open_folder(store: Store, partition_rows: int, max_bytes: int) -> FolderSource:
    """Lists the folder once for its classes: files beside the class folders (a README, say) have no label."""
    labels = {label_of(file.key) for file in visible_files(store)}
    classes = tuple(sorted(label for label in labels if label is not None)) or None
    return FolderSource(store.uri, store, classes, partition_rows, max_bytes)
