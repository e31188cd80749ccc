"""Source of image files in a folder. Labels and splits come from sub-folders or a label file (path_labels.py)."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.config.ingest import IngestConfig
from pipeline.ingest.sources.labels import NO_INFO, SourceInfo
from pipeline.ingest.sources.path_labels import BY_FOLDER, PathRule, PathSurvey, is_label_file, label_table
from pipeline.ingest.sources.read import new_files, read_images, visible_files
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store


@dataclass(frozen=True)
class FolderSource:
    """Every file is a row, except hidden ones, label files and splits that are left out. files: None lists the folder.

    label_files: files that give the labels. The driver reads them, so that partitions carry the labels to the tasks.
    """

    name: str
    store: Store
    classes: tuple[str, ...] | None
    partition_rows: int
    max_bytes: int
    files: tuple[SourceFile, ...] | None = None
    rule: PathRule = BY_FOLDER
    label_files: tuple[str, ...] = ()
    info: SourceInfo = NO_INFO

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        table = label_table(self.label_files, self.rule, self.store.read)
        new = (file for file in new_files(self.store, self.files, known) if not self._is_left_out(file.key))
        while group := tuple(islice(new, self.partition_rows)):
            labels = None if table is None else tuple(self.rule.place(file.key, table).label for file in group)
            yield Partition(group[0].key, group, None, labels)

    def _is_left_out(self, key: str) -> bool:
        return (self.files is None and is_label_file(key)) or self.rule.place(key).out

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        images = read_images(((self.store, file) for file in partition.files), self.max_bytes)
        labels = partition.labels or (None,) * len(partition.files)
        for file, image, label in zip(partition.files, images, labels, strict=True):
            place = self.rule.place(file.key)
            yield SourceRow(file.key, image, place.label if self.rule.source == "folders" else label, place.split)


def open_folder(store: Store, config: IngestConfig) -> FolderSource:
    """Lists the folder once to find labels, classes and splits. Raises ConfigError where labels disagree."""
    survey = PathSurvey(config)
    for file in visible_files(store):
        survey.add(file.key)
    found = survey.finish(store.uri, "folder of image files", "", store.read)
    return FolderSource(
        store.uri,
        store,
        found.classes,
        config.partition_rows,
        config.max_image_bytes,
        rule=found.rule,
        label_files=tuple(survey.label_files),
        info=found.info,
    )
