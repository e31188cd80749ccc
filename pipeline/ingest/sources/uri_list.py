"""Source of images named in a list: CSV, tab-separated, JSON lines or Parquet with a URI column and maybe labels."""

import csv
import io
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa

from pipeline.config.ingest import IngestConfig
from pipeline.errors import ConfigError
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import is_valid_key
from pipeline.ingest.sources.columns import uri_column
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.label_columns import are_numbers, label_like, number_of, split_column
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose, class_names, label_from_value
from pipeline.ingest.sources.parquet import open_parquet
from pipeline.ingest.sources.read import UNKNOWN_SIZE, open_file, read_head, read_images
from pipeline.ingest.sources.source import Partition, SourceFile, SourceRow
from pipeline.ingest.sources.splits import Roles, named_split, roles_of
from pipeline.storage.store import Store, resolve

_LONGEST_LINE: Final = 2**16
_BAD_LINE: Final = -1
"""Size of an entry for a line without a URI; its `version` describes the fault of the line."""
_SIZES: Final = {None: 0, "train": 1, "heldout": 2}
"""Sizes of entries, which are unknown before reading, tell the split."""
_SPLITS: Final = {size: split for split, size in _SIZES.items()}
_SAMPLE: Final = 10_000
_NO_URI: Final = "no place in this line"  # part of fingerprints at rest, like the other texts of bad lines
_LISTS: Final = (".csv", ".tsv", ".jsonl", ".ndjson")


class ListColumns(NamedTuple):
    """The columns of a list. whole: the labels are numbers, also where pandas wrote "1.0". roles: of its splits."""

    uri: str
    label: str | None
    split: str | None
    whole: bool
    roles: Roles = ()


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
    columns: ListColumns
    info: SourceInfo

    def partitions(self, known: Container[str] = frozenset()) -> Iterator[Partition]:
        entries = enumerate(_entries(self.store, self.file, self.columns))
        new = ((number, file, label) for number, (file, label) in entries if file.fingerprint not in known)
        while group := tuple(islice(new, self.config.partition_rows)):
            numbers, files, labels = zip(*group, strict=True)
            stop = numbers[-1] + 1 if len(group) == self.config.partition_rows else ""
            yield Partition(f"{self.file.key}[{numbers[0]}:{stop}]", files, None, labels)

    def rows(self, partition: Partition) -> Iterator[SourceRow]:
        found = [self._locate(file) for file in partition.files]
        images = read_images((each for each in found if not isinstance(each, Reject)), self.config.max_image_bytes)
        for file, label, located in zip(partition.files, partition.labels or (), found, strict=True):
            image = located if isinstance(located, Reject) else next(images)
            yield SourceRow(file.key, image, label, _SPLITS.get(file.size))

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
    """None when the file is not a list. Reads it to find its classes and splits.

    Raises ConfigError, UnusableFile, StorageError.
    """
    try:
        header = _header(store, file, config)
    except UnusableFile as error:
        if error.reject.reason == "wrong-schema" and not file.key.lower().endswith(_LISTS):
            return None
        raise
    uri, names = header
    named = [*label_like([each for each in names if each != uri])]
    named += [each for each in (config.label_column,) if each in names and each not in named]
    split = split_column(names) if config.splits != "none" else None
    records = (record for record in _records(store, file) if isinstance(record, dict))
    sample = list(islice(records, _SAMPLE))
    whole = {column for column in named if _is_csv(store, file) and are_numbers(_cells(sample, column))}
    candidates = [
        Candidate(
            "column", f"column '{column}'", tuple(_label(record, column, column in whole) for record in sample), column
        )
        for column in named
    ]
    choice = choose(name, candidates, config)
    columns = ListColumns(uri, choice.column, split, choice.column in whole)
    if split is not None:
        found = {record.get(split) for record in _records(store, file) if isinstance(record, dict)}
        columns = columns._replace(roles=roles_of((str(each) if each else None for each in found), config, name))
    labels = {label for _, label in _entries(store, file, columns) if label is not None}
    info = SourceInfo("list of images", tuple(names), choice, columns.roles)
    return UriListSource(name, store, file, config, class_names(labels), columns, info)


def _cells(records: list[dict[str, Any]], column: str) -> list[Any]:
    return [record.get(column) for record in records]


def _label(record: dict[str, Any], column: str, whole: bool) -> str | None:
    cell = record.get(column)
    return label_from_value(number_of(cell) if whole else cell)


def _header(store: Store, file: SourceFile, config: IngestConfig) -> tuple[str, list[str]]:
    """The URI column and all columns. Raises UnusableFile ("wrong-schema": not a list), StorageError."""
    if _is_parquet(store, file):
        with open_parquet(store, file) as parquet:
            schema = parquet.schema_arrow
        texts = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)]
        names = schema.names
    else:
        first = next((record for record in _records(store, file) if isinstance(record, dict)), {})
        names = texts = list(first)
    uri = uri_column(texts, config)
    if uri is None:
        raise UnusableFile(
            "wrong-schema",
            f"no column with the paths of images among {', '.join(map(str, names[:20]))[:200]}: "
            "--ingest.image_column names it, --ingest.label_column the labels",
        )
    return uri, names


def _entries(store: Store, file: SourceFile, columns: ListColumns) -> Iterator[tuple[SourceFile, str | None]]:
    """Every line as a file and a label, in order, without left-out splits. Raises UnusableFile, StorageError."""
    roles = dict(columns.roles)
    for number, record in enumerate(_records(store, file)):
        uri = record if isinstance(record, str) else record.get(columns.uri)
        uri = uri.strip() if isinstance(uri, str) else ""
        if isinstance(record, str) or not uri:
            yield SourceFile(f"{file.key}#{number}", _BAD_LINE, record if isinstance(record, str) else _NO_URI), None
            continue
        role = roles.get(str(record.get(columns.split))) if columns.split else None
        if role == "out":
            continue
        label = _label(record, columns.label, columns.whole) if columns.label else None
        size = _SIZES[named_split(role, columns.roles) if role else None]
        yield SourceFile(uri, size, label or ""), label  # the label as version: a new label makes a new entry


Record = dict[str, Any] | str
"""The cells of a line by column, or the fault of the line."""


def _is_parquet(store: Store, file: SourceFile) -> bool:
    return read_head(store, file)[:4] == b"PAR1"


def _is_csv(store: Store, file: SourceFile) -> bool:
    head = read_head(store, file).removeprefix(b"\xef\xbb\xbf")
    return head[:4] != b"PAR1" and not head.lstrip().startswith(b"{")


def _records(store: Store, file: SourceFile) -> Iterator[Record]:
    """Raises UnusableFile ("wrong-schema": not a list), StorageError."""
    with open_file(store, file) as raw:
        if raw.peek(4)[:4] == b"PAR1":
            yield from _parquet(store, file)
            return
        try:
            with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                first = text.readline(_LONGEST_LINE)
                text.seek(0)
                yield from _json_lines(text) if first.lstrip().startswith("{") else _csv(text, first)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UnusableFile(
                "damaged-container", f"{store.location(file.key)} is not a list in UTF-8: {error}"
            ) from error


def _csv(text: IO[str], first: str) -> Iterator[Record]:
    delimiter = next((mark for mark in ("\t", ";") if mark in first), ",")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    header = next(lines, [])
    for fields in lines:
        if fields:
            record = dict(zip(header, fields, strict=False))
            yield record if len(fields) == len(header) else f"{len(fields)} fields, not {len(header)}"


def _json_lines(text: IO[str]) -> Iterator[Record]:
    while line := text.readline(_LONGEST_LINE):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"no JSON: {error}"
            continue
        yield record if isinstance(record, dict) else "no JSON object"


def _parquet(store: Store, file: SourceFile) -> Iterator[Record]:
    with open_parquet(store, file) as parquet:
        for batch in parquet.iter_batches():
            yield from batch.to_pylist()
