"""Reader of Parquet files with a column of images: Hugging Face's `struct<bytes, path>`, or plain binary."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.columns import ImageColumns, image_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.labels import label_from_value
from pipeline.ingest.sources.read import open_file
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.ingest.sources.splits import Roles, named_split
from pipeline.storage.store import Store

_WHOLE_BYTES: Final = 128 * 2**20
"""Files up to this size are one range of rows, so that the driver need not read their footers."""
_BATCH_ROWS: Final = 32
_BAD: Final = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class ParquetReader:
    """Ranges of rows end at row groups. config.label_column: the label column that was chosen, None for no labels.

    names: class names of integer labels, for files that have none. roles: of the splits that a column names.
    """

    config: IngestConfig
    names: tuple[str, ...] | None = None
    roles: Roles = ()

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        if file.size <= _WHOLE_BYTES:
            yield None
            return
        with open_parquet(store, file) as parquet:
            start = stop = 0
            for group in range(parquet.num_row_groups):
                stop += parquet.metadata.row_group(group).num_rows
                if stop - start >= self.config.partition_rows or group == parquet.num_row_groups - 1:
                    yield range(start, stop)
                    start = stop

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        with open_parquet(store, file) as parquet:
            row_range = range(parquet.metadata.num_rows) if row_range is None else row_range
            done = row_range.start
            try:
                for row in self._read(parquet, row_range):
                    if row is not None:
                        yield row._replace(source=f"{file.key}#{done}")
                    done += 1
            except (*_BAD, UnusableFile) as error:  # every row up to the end of the range gets a reject
                broken = Reject("damaged-container", f"the Parquet file breaks here: {error}")
                reject = error.reject if isinstance(error, UnusableFile) else broken
                yield from (SourceRow(f"{file.key}#{row}", reject) for row in range(done, row_range.stop))

    def _read(self, parquet: pq.ParquetFile, row_range: range) -> Iterator[SourceRow | None]:
        """None stands for a row of a split that is left out."""
        columns = image_columns(parquet.schema_arrow, self.config)
        split = columns.split if self.roles else None
        wanted = list(dict.fromkeys(filter(None, (columns.image, columns.label, split))))
        for group in _groups(parquet, row_range):  # one at a time, so that damage costs no row of the group before
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                yield from self._rows(batch, columns)

    def _rows(self, batch: pa.RecordBatch, columns: ImageColumns) -> Iterator[SourceRow | None]:
        nothing = [None] * batch.num_rows
        images = batch.column(columns.image).to_pylist()
        labels = batch.column(columns.label).to_pylist() if columns.label else nothing
        splits = batch.column(columns.split).to_pylist() if columns.split and self.roles else nothing
        roles = dict(self.roles)
        for image, label, split in zip(images, labels, splits, strict=True):
            role = roles.get(split or "")
            if role == "out":
                yield None
                continue
            row = SourceRow("", _image(image, columns), None, role and named_split(role, self.roles))
            try:
                yield row._replace(label=label_from_value(label, columns.names or self.names))
            except ValueError as error:
                yield row._replace(image=Reject("unknown-label", str(error)))


def _image(cell: Any, columns: ImageColumns) -> bytes | Reject:
    data = cell["bytes"] if columns.nested and cell is not None else cell
    if data is not None:
        return cast(bytes, data)
    path = cell.get("path") if columns.nested and cell is not None else None
    return Reject("empty", "null instead of bytes" + (f" (only the path {path!r})" if path else ""))


@contextmanager
def open_parquet(store: Store, file: SourceFile) -> Iterator[pq.ParquetFile]:
    """The file with its footer read. Raises UnusableFile when the footer is damaged, StorageError."""
    with open_file(store, file) as raw:
        try:
            parquet = pq.ParquetFile(raw, pre_buffer=False)
        except _BAD as error:
            raise UnusableFile("damaged-container", f"no whole Parquet file: {error}") from error
        with parquet:
            yield parquet


def _groups(parquet: pq.ParquetFile, row_range: range) -> list[int]:
    """The row groups that begin inside a range of rows."""
    start, found = 0, []
    for group in range(parquet.num_row_groups):
        if start in row_range:
            found.append(group)
        start += parquet.metadata.row_group(group).num_rows
    return found


def sample_of(store: Store, file: SourceFile, columns: list[str], most: int | None) -> dict[str, list[Any]]:
    """The first cells of some columns (most: None for all), which costs no reading of images.

    Raises UnusableFile, StorageError.
    """
    found: dict[str, list[Any]] = {name: [] for name in columns}
    with open_parquet(store, file) as parquet:
        try:
            for batch in parquet.iter_batches(4096, columns=columns, use_threads=False):
                for name in columns:
                    found[name] += batch.column(name).to_pylist()
                if most is not None and len(found[columns[0]]) >= most:
                    break
        except _BAD as error:
            raise UnusableFile("damaged-container", f"the Parquet file breaks: {error}") from error
    return found
