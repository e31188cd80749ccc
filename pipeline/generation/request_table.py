"""Request table files: reading CSV, JSON lines and Parquet, and the checked copy stored beside the plan."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.requests import REQUIRED, BadRow, Requests, Row
from pipeline.storage.files import file_entry, parquet_bytes, read_parquet
from pipeline.storage.store import Store, resolve

ROW_GROUP_ROWS = 65_536
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RequestSource:
    """The user's request table: bytes in one of three formats."""

    uri: str
    data: bytes
    format: str  # parquet, csv or jsonl

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def unit(self) -> str:
        """The unit that `rows` numbers: 'row' or 'line'."""
        return "row" if self.format == "parquet" else "line"

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Rows with their number in the file, from 1; blank lines are skipped. Raises DataError."""
        try:
            yield from {"parquet": _parquet_rows, "csv": _csv_rows, "jsonl": _json_rows}[self.format](self.data)
        except DataError as error:
            raise DataError(f"{self.uri}: {error}") from error
        except (UnicodeDecodeError, csv.Error, pa.ArrowException, OSError) as error:
            raise DataError(f"{self.uri} cannot be read as {self.format}: {error}") from error


def read_source(uri: str, config: StorageConfig) -> RequestSource:
    """Raises ConfigError when the URI names no file, DataError for a missing file or an unknown format."""
    folder, slash, name = uri.rpartition("/")
    if not name:
        raise ConfigError(f"--requests {uri!r} names no file")
    store = resolve(folder or slash or ".", config)
    try:
        data = store.read(name)
    except NotFound as error:
        raise DataError(f"no request table at {store.location(name)}") from error
    ending = name.rpartition(".")[2].lower()
    known = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
    kind = "parquet" if data[:4] == PARQUET_MAGIC else known.get(ending)
    if kind is None:
        raise DataError(f"{store.location(name)} is not a request table: give .parquet, .csv or .jsonl")
    return RequestSource(store.location(name), data, kind)


def _check_columns(names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"column {' and '.join(missing)} is missing; the columns are {', '.join(names) or 'none'}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"column {', '.join(twice)} occurs more than once")


def _csv_rows(data: bytes) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), strict=True)
    names = [name.strip() for name in next(reader, [])]
    _check_columns(names)
    line = reader.line_num
    for values in reader:
        number, line = line + 1, reader.line_num  # a quoted value may span lines: count the first
        if len(values) == len(names):
            yield number, dict(zip(names, values, strict=True))
        elif values:
            yield number, BadRow(f"has {len(values)} values for {len(names)} columns")


class _Twice(ValueError):
    """A name that one JSON object holds twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _Twice(f"holds {', '.join(twice)} twice")
    return dict(pairs)


def _json_rows(data: bytes) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except _Twice as error:
            yield number, BadRow(str(error))
            continue
        except ValueError as error:
            yield number, BadRow(f"is not JSON: {error}")
            continue
        yield number, row if isinstance(row, dict) else BadRow(f"is {type(row).__name__}, not an object")


def _parquet_rows(data: bytes) -> Iterator[tuple[int, Row]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    _check_columns(file.schema_arrow.names)
    yield from enumerate((row for batch in file.iter_batches(ROW_GROUP_ROWS) for row in batch.to_pylist()), start=1)


def request_file(table: pa.Table) -> tuple[FileEntry, bytes]:
    """Entry and Parquet bytes of a checked table (schema REQUESTS); the key holds a hash of the content."""
    data = parquet_bytes(table, ROW_GROUP_ROWS)
    return file_entry(f"requests/{hashlib.sha256(data).hexdigest()[:16]}.parquet", data), data


def load_requests(folder: Store, plan: SamplePlan) -> Requests | None:
    """The plan's request table, None without one. Raises VerificationFailed for a damaged copy."""
    return None if plan.requests is None else Requests(read_parquet(folder, plan.requests.file).combine_chunks())
