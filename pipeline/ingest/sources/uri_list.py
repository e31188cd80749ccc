"""Source of images named in a list: CSV, tab-separated, JSON lines or Parquet with a URI column and maybe labels."""

import csv
import io
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Final

import pyarrow as pa

from pipeline.config.ingest import IngestConfig
from pipeline.errors import ConfigError
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import is_valid_key
from pipeline.ingest.sources.columns import UriColumns, uri_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.labels import class_names, label_from_value
from pipeline.ingest.sources.parquet import open_parquet
from pipeline.ingest.sources.read import UNKNOWN_SIZE, open_file, read_images
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.storage.store import Store, resolve

_LONGEST_LINE: Final = 2**16
_BAD_LINE: Final = -1
"""Size of an entry for a line without a URI; its `version` describes the fault of the line."""
_NO_URI: Final = "no place in this line"  # part of fingerprints at rest, like the other texts of bad lines


@dataclass(frozen=True)
class UriListSource:
    """Relative URIs start at the folder of the list and stay below it. A list in a bucket must not name local files.

    An entry is identified by URI and label: an object that changes under its URI is not noticed as new.
    """

    name: str
    store: Store  # folder of the list
    file: SourceFile
    config: IngestConfig
    classes: tuple[str, ...] | None

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        entries = enumerate(_entries(self.store, self.file, self.config))
        new = ((number, file, label) for number, (file, label) in entries if file.fingerprint not in known)
        while group := tuple(islice(new, self.config.partition_rows)):
            numbers, files, labels = zip(*group, strict=True)
            stop = numbers[-1] + 1 if len(group) == self.config.partition_rows else ""
            yield Partition(f"{self.file.key}[{numbers[0]}:{stop}]", files, None, labels)

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        found = [self._locate(file) for file in partition.files]
        images = read_images((each for each in found if not isinstance(each, Reject)), self.config.max_image_bytes)
        for file, label, located in zip(partition.files, partition.labels or (), found, strict=True):
            yield SourceRow(file.key, located if isinstance(located, Reject) else next(images), label)

    def _locate(self, file: SourceFile) -> tuple[Store, SourceFile] | Reject:
        if file.size == _BAD_LINE:
            return Reject("wrong-schema", file.version)
        path = file.key.partition("://")[2] or file.key.removeprefix("./")
        if not is_valid_key(path.removeprefix("/")):
            return Reject("unsafe-name", f"{file.key!r} has an empty part, '.' or '..'")
        remote = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", file.key)
        if not remote and not file.key.startswith("/"):
            return (self.store, SourceFile(file.key.removeprefix("./"), UNKNOWN_SIZE, ""))
        if self.store.kind != "local" and not file.key.startswith("s3://"):
            return Reject("unsafe-name", f"a list at {self.store.uri} may name objects in S3, not {file.key!r}")
        folder, _, name = file.key.rpartition("/")
        try:
            return resolve(folder or "/", self.store.config), SourceFile(name, UNKNOWN_SIZE, "")
        except ConfigError as error:
            return Reject("unreadable", str(error))


def open_list(name: str, store: Store, file: SourceFile, config: IngestConfig) -> UriListSource | None:
    """None when the file is not a list. Reads it once to find its classes. Raises UnusableFile, StorageError."""
    try:
        labels = {label for _, label in _entries(store, file, config) if label is not None}
    except UnusableFile as error:
        if error.reject.reason == "wrong-schema":
            return None
        raise
    return UriListSource(name, store, file, config, class_names(labels))


def _entries(store: Store, file: SourceFile, config: IngestConfig) -> Iterator[tuple[SourceFile, str | None]]:
    """Every line as a file and a label, in order. Raises UnusableFile ("wrong-schema": not a list), StorageError."""
    for number, line in enumerate(_lines(store, file, config)):
        if isinstance(line, str):
            yield SourceFile(f"{file.key}#{number}", _BAD_LINE, line), None
        else:
            uri, label = line
            yield SourceFile(uri, 0, label or ""), label  # the label as version: a new label makes a new entry


Line = tuple[str, str | None] | str
"""URI and label, or the fault of the line."""


def _lines(store: Store, file: SourceFile, config: IngestConfig) -> Iterator[Line]:
    with open_file(store, file) as raw:
        if raw.peek(4)[:4] == b"PAR1":
            yield from _parquet(store, file, config)
            return
        try:
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                first = text.readline(_LONGEST_LINE)
                text.seek(0)
                yield from _json_lines(text, config) if first.lstrip().startswith("{") else _csv(text, first, config)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UnusableFile(
                "damaged-container", f"{store.location(file.key)} is not a list in UTF-8: {error}"
            ) from error


def _csv(text: IO[str], first: str, config: IngestConfig) -> Iterator[Line]:
    delimiter = next((mark for mark in ("\t", ";") if mark in first), ",")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    header = next(lines, [])
    columns = uri_columns(header, header, config)
    if columns is None:
        raise UnusableFile("wrong-schema", f"no column with URIs among {', '.join(header[:20])[:200]}")
    for fields in lines:
        if fields:
            record = dict(zip(header, fields, strict=False))
            yield _line(record, columns) if len(fields) == len(header) else f"{len(fields)} fields, not {len(header)}"


def _json_lines(text: IO[str], config: IngestConfig) -> Iterator[Line]:
    columns: UriColumns | None = None
    while line := text.readline(_LONGEST_LINE):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"no JSON: {error}"
            continue
        columns = columns or (uri_columns(list(record), list(record), config) if isinstance(record, dict) else None)
        if columns is None:
            raise UnusableFile("wrong-schema", f"no field with a URI in {line[:200]!r}")
        yield _line(record, columns) if isinstance(record, dict) else "no JSON object"


def _parquet(store: Store, file: SourceFile, config: IngestConfig) -> Iterator[Line]:
    with open_parquet(store, file) as parquet:
        schema = parquet.schema_arrow
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        columns = uri_columns(texts, schema.names, config)
        if columns is None:
            raise UnusableFile("wrong-schema", f"no column with URIs among {', '.join(schema.names[:20])}")
        wanted = [columns.uri] + ([columns.label] if columns.label else [])
        for batch in parquet.iter_batches(columns=wanted):
            for record in batch.to_pylist():
                yield _line(record, columns)


def _line(record: dict[str, Any], columns: UriColumns) -> Line:
    uri, label = record.get(columns.uri), record.get(columns.label) if columns.label else None
    uri = uri.strip() if isinstance(uri, str) else ""
    return (uri, label_from_value(label)) if uri else _NO_URI
