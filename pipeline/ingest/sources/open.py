"""Choose the kind of source for a URI: by the first bytes of its files, or by names where the bytes do not decide."""

from collections import Counter
from itertools import islice
from typing import Final

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.images.file_types import Kind, describe_head, kind_of
from pipeline.images.foreign_types import foreign_type
from pipeline.ingest.sources.cifar import is_cifar, open_cifar, open_cifar_tar
from pipeline.ingest.sources.columns import image_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.dataset import open_dataset
from pipeline.ingest.sources.digits import DigitsSource
from pipeline.ingest.sources.folder import FolderSource, open_folder
from pipeline.ingest.sources.idx import open_idx
from pipeline.ingest.sources.label_map import relabelled, with_label_map
from pipeline.ingest.sources.lmdb import open_lmdb
from pipeline.ingest.sources.open_container import files_without_images, has_images, open_container
from pipeline.ingest.sources.parquet import open_parquet
from pipeline.ingest.sources.read import read_head, read_heads, visible_files
from pipeline.ingest.sources.source import Source, SourceFile
from pipeline.ingest.sources.uri_list import open_list
from pipeline.storage.store import Store, resolve

_SAMPLE_FILES: Final = 64
_ENDINGS: Final[dict[str, Kind]] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".zip": "zip",
    ".npz": "zip",
    "ubyte": "idx",
    "ubyte.gz": "idx",
    ".idx": "idx",
    ".idx.gz": "idx",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"), "image"),
    **dict.fromkeys((".avif", ".jp2", ".j2k", ".jxl"), "image"),
}
_KINDS: Final = (
    "a folder, zip or tar (WebDataset) of images, a table with an image column (Parquet, Arrow), arrays (npz, IDX), "
    "CIFAR's batches, LMDB, or a list of images (CSV, JSON lines, Parquet)"
)


def open_source(uri: str, config: Config) -> Source:
    """Open the source at a local path, file:///path or s3://bucket/prefix, or the built-in source 'digits'.

    Raises ConfigError for what cannot be a source, DataError saying what was seen for an empty or damaged one.
    """
    config = with_label_map(config)
    names = config.ingest.label_map
    source = _opened(uri, config)
    if isinstance(config.ingest.splits, dict) and not source.info.splits:
        raise ConfigError(f"ingest.splits: {source.name} names no splits, by folder, file, column or array")
    return relabelled(source, names if isinstance(names, dict) else None)


def _opened(uri: str, config: Config) -> Source:
    if uri == "digits":
        return DigitsSource(config.ingest.partition_rows)
    store = resolve(uri, config.storage)
    if (found := _as_file(store, config)) is not None:
        try:
            return _open_file(store.uri, *found, config)
        except UnusableFile as error:
            raise DataError(f"{store.uri} cannot be used: {error.reject.detail}") from error
    return _open_folder(store, config)


def _as_file(store: Store, config: Config) -> tuple[Store, SourceFile] | None:
    """The folder and listing entry of the file that a URI names; None when the URI is a folder."""
    folder, _, name = store.uri.rpartition("/")
    if not name or folder.endswith(":/"):  # the root of a disk or bucket
        return None
    parent = resolve(folder or "/", config.storage)
    if not parent.exists(name):
        return None
    state = next((state for state in parent.list_versioned(name) if state.key == name), None)
    if state is None:  # deleted between the two calls
        raise NotFound(f"no file {store.uri}: check --source")
    return parent, SourceFile(*state)


def _open_file(name: str, store: Store, file: SourceFile, config: Config) -> Source:
    head = read_head(store, file)
    kind = kind_of(head)
    kind = kind if kind not in ("empty", "unknown", "gzip") else _kind_by_name(file.key) or kind
    ingest = config.ingest
    if kind == "image":
        return FolderSource(name, store, None, ingest.partition_rows, ingest.max_image_bytes, (file,))
    if kind == "idx":
        return open_idx(name, store, [file], ingest)
    if kind == "parquet":
        return _parquet_list(name, store, file, config) or open_container(kind, name, store, [file], None, (), ingest)
    if kind == "pickle" or is_cifar(file, head):
        return open_cifar(name, store, [file], config.ingest)
    if kind == "lmdb":
        return open_lmdb(name, store, [file], config.ingest)
    if kind == "tar" and (batches := open_cifar_tar(name, store, file, config.ingest)):
        return batches
    if kind in ("tar", "zip", "arrow"):
        return open_container(kind, name, store, [file], None, (), ingest)
    if kind == "text" and (found := open_list(name, store, file, ingest)):
        return found
    raise DataError(f"{name} is {describe_head(head)}: {_way_out([head])}")


def _parquet_list(name: str, store: Store, file: SourceFile, config: Config) -> Source | None:
    """A source for a Parquet file that has no image column but a column of URIs; None for others."""
    with open_parquet(store, file) as parquet:
        try:
            image_columns(parquet.schema_arrow, config.ingest)
        except UnusableFile:
            return open_list(name, store, file, config.ingest)
    return None


def _open_folder(store: Store, config: Config) -> Source:
    if (dataset := open_dataset(store, config.ingest)) is not None:
        return dataset
    files = list(islice(visible_files(store), _SAMPLE_FILES))
    if not files:
        raise DataError(f"no images at {store.uri}: it is missing or empty; a source is {_KINDS}")
    heads = read_heads(store, files)
    if any(map(is_cifar, files, heads)):
        return open_cifar(store.uri, store, None, config.ingest)
    kinds = Counter(kind_of(head) for head in heads)
    known: tuple[Kind, ...] = ("image", "parquet", "tar", "zip", "idx", "lmdb", "arrow")
    if kinds["parquet"] and kinds["tar"] and not has_images(store, files, heads):
        kinds["parquet"] = 0  # img2dataset writes a table of URIs beside each tar
    best = max(known, key=lambda kind: kinds[kind])  # the first of equal ones
    if not kinds[best]:
        hints = Counter(hint for file in files if (hint := _kind_by_name(file.key)) is not None)
        if not hints:
            seen = ", ".join(
                f"{file.key}: {describe_head(head)}" for file, head in list(zip(files, heads, strict=True))[:5]
            )
            raise DataError(f"no images at {store.uri} ({seen}): {_way_out(heads)}")
        best = max(known, key=lambda kind: hints[kind])
    if best == "image":
        return open_folder(store, config.ingest)
    if best == "lmdb":
        return open_lmdb(store.uri, store, None, config.ingest)
    everything = list(visible_files(store))
    if best == "idx":
        return open_idx(store.uri, store, everything, config.ingest)
    sample = [file for file, head in zip(files, heads, strict=True) if kind_of(head) == best] or files[:1]
    skipped = files_without_images(best, store, everything, sample)
    sample = [file for file in sample if file.key not in skipped]
    try:
        return open_container(best, store.uri, store, sample, everything, skipped, config.ingest)
    except UnusableFile as error:
        raise DataError(f"{store.location(sample[0].key)} cannot be used: {error.reject.detail}") from error


def _way_out(heads: list[bytes]) -> str:
    """How to convert files of a known format that is not read, and what is read."""
    found = next((kind for head in heads if (kind := foreign_type(head)) is not None), None)
    return f"{f'{found.conversion}; ' if found else ''}a source is {_KINDS}"


def _kind_by_name(key: str) -> Kind | None:
    return next((kind for ending, kind in _ENDINGS.items() if key.lower().endswith(ending)), None)
