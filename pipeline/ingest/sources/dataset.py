"""A dataset made by ingest as a source: the shards that its manifest names, never rejects or leftover files."""

from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError, NotFound
from pipeline.ingest.dataset import MANIFEST, read_dataset
from pipeline.ingest.sources.containers import ContainerSource
from pipeline.ingest.sources.labels import Candidate, LabelChoice, SourceInfo
from pipeline.ingest.sources.parquet import ParquetReader
from pipeline.ingest.sources.source import SourceFile
from pipeline.storage.store import Store


def open_dataset(store: Store, config: IngestConfig) -> ContainerSource | None:
    """None when the folder holds no dataset. Raises DataError for a damaged manifest, StorageError."""
    try:
        document = store.read_json(MANIFEST)
    except (NotFound, DataError):  # a manifest.json of another program
        return None
    if not isinstance(document, dict) or document.get("kind") != "dataset":
        return None
    manifest = read_dataset(store)
    files = tuple(SourceFile(shard.key, shard.bytes, shard.sha256) for shard in manifest.shards)
    labelled = manifest.classes is not None and config.label_source in ("auto", "column")
    column = config.label_column or ("label" if labelled else None)
    reader = ParquetReader(config.model_copy(update={"label_column": column}), manifest.classes)
    labels = LabelChoice(Candidate("column", "the classes of the dataset", (), column)) if column else LabelChoice()
    info = SourceInfo("dataset made by ingest", labels=labels)
    return ContainerSource(store.uri, store, "parquet", reader, manifest.classes, files, info=info)
