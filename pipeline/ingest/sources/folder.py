"""Source of image files in a folder. The first sub-folder is the class, however deep the file lies."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.ingest.sources.labels import label_from_path
from pipeline.ingest.sources.read import new_files, read_images, visible_files
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store


@dataclass(frozen=True)
class FolderSource:
    """Every file is a row, except hidden ones. files: None lists the folder."""

    name: str
    store: Store
    classes: tuple[str, ...] | None
    partition_rows: int
    max_bytes: int
    files: tuple[SourceFile, ...] | None = None

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        files = new_files(self.store, self.files, known)
        while group := tuple(islice(files, self.partition_rows)):
            yield Partition(group[0].key, group)

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        images = read_images(((self.store, file) for file in partition.files), self.max_bytes)
        for file, image in zip(partition.files, images, strict=True):
            yield SourceRow(file.key, image, label_from_path(file.key))


def open_folder(store: Store, partition_rows: int, max_bytes: int) -> FolderSource:
    """Lists the folder once to find its classes. Files beside the class folders, such as a README, have no label."""
    labels = {label_from_path(file.key) for file in visible_files(store)}
    classes = tuple(sorted(label for label in labels if label is not None)) or None
    return FolderSource(store.uri, store, classes, partition_rows, max_bytes)
