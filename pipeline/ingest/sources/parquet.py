"""Reader of Parquet files with a column of images: Hugging Face's `struct<bytes, path>`, or plain binary."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.columns import ImageColumns, image_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.labels import label_from_value
from pipeline.ingest.sources.read import open_file
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.storage.store import Store

_WHOLE_BYTES: Final = 128 * 2**20
"""Files up to this size are one range of rows, so that the driver need not read their footers."""
_BATCH_ROWS: Final = 32
_BAD: Final = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class ParquetReader:
    """Ranges of rows end at row groups. names: class names of integer labels, for files that have none."""

    config: IngestConfig
    names: tuple[str, ...] | None = None

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
                    yield row._replace(source=f"{file.key}#{done}")
                    done += 1
            except (*_BAD, UnusableFile) as error:  # every row up to the end of the range gets a reject
                broken = Reject("damaged-container", f"the Parquet file breaks here: {error}")
                reject = error.reject if isinstance(error, UnusableFile) else broken
                yield from (SourceRow(f"{file.key}#{row}", reject) for row in range(done, row_range.stop))

    def _read(self, parquet: pq.ParquetFile, row_range: range) -> Iterator[SourceRow]:
        columns = image_columns(parquet.schema_arrow, self.config)
        wanted = [columns.image] + ([columns.label] if columns.label else [])
        for group in _groups(parquet, row_range):  # one at a time, so that damage costs no row of the group before
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                yield from self._rows(batch, columns)

    def _rows(self, batch: pa.RecordBatch, columns: ImageColumns) -> Iterator[SourceRow]:
        images = batch.column(columns.image).to_pylist()
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(images)
        for image, label in zip(images, labels, strict=True):
            data = image["bytes"] if columns.nested and image is not None else image
            name = label_from_value(label, columns.names or self.names)
            if data is None:
                path = image.get("path") if columns.nested and image is not None else None
                detail = "null instead of bytes" + (f" (only the path {path!r})" if path else "")
                yield SourceRow("", Reject("empty", detail), name)
            else:
                yield SourceRow("", data, name)


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
