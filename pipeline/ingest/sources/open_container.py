"""Open tar, zip, npz and Parquet files as a source: find labels and splits by a sample, and leave out index files."""

from dataclasses import replace
from typing import Final

import pyarrow as pa

from pipeline.config.ingest import IngestConfig
from pipeline.images.file_types import Kind, kind_of
from pipeline.ingest.sources.arrow import ARROW_DOCUMENTS, ArrowReader, arrow_sample, open_arrow
from pipeline.ingest.sources.columns import image_columns, label_columns, uri_column
from pipeline.ingest.sources.containers import ContainerSource, Reader, UnusableFile
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose, label_from_value
from pipeline.ingest.sources.npz import NpzReader, is_npz, open_npz
from pipeline.ingest.sources.parquet import ParquetReader, open_parquet, parquet_sample
from pipeline.ingest.sources.source import SourceFile
from pipeline.ingest.sources.splits import Roles, roles_of, split_in_name
from pipeline.ingest.sources.webdataset import WebDatasetReader
from pipeline.ingest.sources.webdataset_survey import survey_tar
from pipeline.ingest.sources.zip import ZipReader
from pipeline.storage.store import Store

_SAMPLE: Final = 10_000


def open_container(
    kind: Kind,
    name: str,
    store: Store,
    sample: list[SourceFile],
    everything: list[SourceFile] | None,
    skipped: tuple[str, ...],
    config: IngestConfig,
) -> ContainerSource:
    """A source of one file (everything: None), or of the files of a folder. sample: files of the kind, the first of
    which shows the layout. Raises ConfigError where labels disagree, UnusableFile, StorageError.
    """
    source = _container(kind, name, store, sample, everything is None, config)
    roles = _roles_by_file(kind, name, everything, skipped, config)
    info = replace(source.info, splits=roles or source.info.splits, left_out=skipped if kind != "arrow" else ())
    files = tuple(sample) if everything is None else None
    return replace(source, files=files, roles=roles, skipped=skipped, info=info)


def _container(
    kind: Kind, name: str, store: Store, sample: list[SourceFile], single: bool, config: IngestConfig
) -> ContainerSource:
    first, size = sample[0], config.partition_rows
    if kind == "tar":
        rule, found = survey_tar(store, first, sample[1:], config)
        tar = WebDatasetReader(config.max_image_bytes, rule)
        return ContainerSource(name, store, kind, tar, found.classes if single else None, info=found.info)
    if kind in ("parquet", "arrow"):
        return _table(kind, name, store, sample, config)
    if is_npz(store, first):
        npz, info = open_npz(NpzReader(size), store, first, config)
        return ContainerSource(name, store, kind, npz, info=info)
    zipped = ZipReader(size, config.max_image_bytes)
    found = zipped.survey(store, first, config)
    zipped = replace(zipped, rule=found.rule)
    return ContainerSource(name, store, kind, zipped, found.classes if single else None, info=found.info)


def _table(kind: Kind, name: str, store: Store, sample: list[SourceFile], config: IngestConfig) -> ContainerSource:
    first = sample[0]
    schema, sample_of = _schema(kind, store, first), arrow_sample if kind == "arrow" else parquet_sample
    columns = image_columns(schema, config)
    named = {column: names for column, names in label_columns(schema, config).items() if column != columns.image}
    cells = sample_of(store, first, list(named), _SAMPLE) if named else {}
    candidates = []
    for column, names in named.items():
        values = tuple(_known_label(cell, names) for cell in cells[column])
        candidates.append(Candidate("column", f"column '{column}'", values, column))
    choice = choose(name, candidates, config)
    found: set[str | None] = set()
    for file in sample if columns.split else ():
        found |= set(sample_of(store, file, [str(columns.split)], None)[str(columns.split)])
    roles = roles_of(found, config, name) if columns.split else ()
    reader = ParquetReader(config.model_copy(update={"label_column": choice.column}), None, roles)
    info = SourceInfo(
        "Parquet" if kind == "parquet" else "Arrow",
        tuple(f"{field.name}: {field.type}" for field in schema),
        choice,
        roles,
    )
    table: Reader = reader if kind == "parquet" else ArrowReader(reader)
    return ContainerSource(name, store, kind, table, named.get(choice.column or ""), info=info)


def _known_label(cell: object, names: tuple[str, ...] | None) -> str | None:
    try:
        return label_from_value(cell, names)
    except ValueError:  # the task that reads the row makes it a reject
        return None


def _schema(kind: Kind, store: Store, file: SourceFile) -> pa.Schema:
    if kind == "arrow":
        with open_arrow(store, file) as reader:
            return reader.schema
    with open_parquet(store, file) as parquet:
        return parquet.schema_arrow


def _roles_by_file(
    kind: Kind, name: str, everything: list[SourceFile] | None, skipped: tuple[str, ...], config: IngestConfig
) -> Roles:
    endings = {
        "tar": (".tar", ".tar.gz", ".tgz"),
        "parquet": (".parquet",),
        "arrow": (".arrow",),
        "zip": (".zip", ".npz"),
    }.get(kind, ())
    keys = [each.key for each in everything or () if each.key not in skipped and each.key.lower().endswith(endings)]
    return roles_of((split_in_name(key) for key in keys), config, name)


def has_images(store: Store, files: list[SourceFile], heads: list[bytes]) -> bool:
    """Whether one of the Parquet files may hold images."""
    tables = [file for file, head in zip(files, heads, strict=True) if kind_of(head) == "parquet"]
    return not all(_is_index(store, file) for file in tables)


def files_without_images(
    kind: Kind, store: Store, everything: list[SourceFile], sample: list[SourceFile]
) -> tuple[str, ...]:
    """Keys of tables of URIs beside the images, and of img2dataset's statistics."""
    keys = {file.key for file in everything}
    if kind == "tar":
        stems = {key.removesuffix(".tar") for key in keys if key.endswith(".tar")}
        beside = {f"{stem}{ending}" for stem in stems for ending in (".parquet", "_stats.json", ".json", ".csv")}
        return tuple(sorted(keys & beside))
    if kind == "arrow":
        return tuple(sorted(key for key in keys if key.rpartition("/")[2] in ARROW_DOCUMENTS))
    if kind != "parquet":
        return ()
    index = tuple(file.key for file in sample if _is_index(store, file))
    return index if len(index) < len(sample) else ()


def _is_index(store: Store, file: SourceFile) -> bool:
    """Whether a Parquet file has no column of images, but one that names images."""
    config = IngestConfig()
    try:
        with open_parquet(store, file) as parquet:
            schema = parquet.schema_arrow
    except UnusableFile:
        return False
    try:
        image_columns(schema, config)
    except UnusableFile:
        return uri_column(schema.names, config) is not None
    return False
