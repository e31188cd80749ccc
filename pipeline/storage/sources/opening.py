"""From a URI to a source, by what lies there."""

from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.storage.sources.folder import FolderSource, files_of
from pipeline.storage.sources.source import Source
from pipeline.storage.store import resolve

__all__ = ["open_source"]


def open_source(uri: str, config: Config) -> Source:
    """Raises ConfigError for what is no source and DataError for an empty or damaged one."""
    store = resolve(uri, config.storage)
    keys = [file.key for file in files_of(store)]
    if not keys:
        raise DataError(f"no images at {store.uri}")
    classes = tuple(sorted({key.partition("/")[0] for key in keys if "/" in key})) or None
    return FolderSource(store, classes, config.ingest.partition_rows)
