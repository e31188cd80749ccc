"""`ingest.label_map`: rename labels, to give two data sets the same class names or to join classes."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from pipeline.config.root import Config
from pipeline.config.yaml_loader import read_text_values
from pipeline.errors import ConfigError, NotFound
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.labels import SourceInfo
from pipeline.ingest.sources.source import Partition, Source, SourceRow
from pipeline.storage.store import resolve


@dataclass(frozen=True)
class RelabelledSource:
    """A source with renamed labels. A row whose label is not in the map is rejected; a row without a label stays."""

    source: Source
    names: tuple[tuple[str, str | None], ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...] | None:
        return tuple(dict.fromkeys(new for _, new in self.names if new is not None)) or None

    @property
    def info(self) -> SourceInfo:
        return self.source.info

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        return self.source.partitions(known)

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        names = dict(self.names)
        for row in self.source.rows(partition):
            if row.label is None or isinstance(row.image, Reject):
                yield row
            elif row.label in names:
                yield row._replace(label=names[row.label])
            else:
                reject = Reject("unknown-label", f"ingest.label_map does not name {row.label!r}")
                yield SourceRow(row.source, reject)


def with_label_map(config: Config) -> Config:
    """The configuration with a label map file replaced by its content. Raises ConfigError."""
    uri = config.ingest.label_map
    if not isinstance(uri, str):
        return config
    folder, _, name = uri.rpartition("/")
    try:
        data = resolve(folder or ".", config.storage).read(name)
    except NotFound as error:
        raise ConfigError(f"ingest.label_map: no file {uri}") from error
    found = read_text_values(data, f"ingest.label_map: {uri}")  # JSON is YAML
    if not isinstance(found, dict) or not all(isinstance(new, str | None) for new in found.values()):
        raise ConfigError(f"ingest.label_map: {uri} must map labels to names, or to null for no label")
    return config.model_copy(update={"ingest": config.ingest.model_copy(update={"label_map": found})})


def relabelled(source: Source, names: dict[str, str | None] | None) -> Source:
    """The source with its labels renamed; unchanged without a map."""
    return source if names is None else RelabelledSource(source, tuple(names.items()))
