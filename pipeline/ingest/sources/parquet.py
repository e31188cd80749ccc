"""Parquet files with images in a column: Hugging Face's `struct<bytes, path>`, or plain binary."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.columns import ImageColumns, image_columns, label_name
from pipeline.ingest.sources.containers import Unfit
from pipeline.ingest.sources.read import open_file
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.storage.store import Store

__all__ = ["ParquetReader", "opened_parquet"]

_WHOLE_BYTES: Final = 128 * 2**20
"""Files up to this size are one share, and the driver need not read their footers."""
_BATCH_ROWS: Final = 32
_BAD: Final = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class ParquetReader:
    """A share is a range of rows, cut at row groups. `names`: of integer labels, where the file has none."""

    config: IngestConfig
    names: tuple[str, ...] | None = None

    def shares(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        if file.size <= _WHOLE_BYTES:
            yield None
            return
        with opened_parquet(store, file) as parquet:
            start = stop = 0
            for group in range(parquet.num_row_groups):
                stop += parquet.metadata.row_group(group).num_rows
                if stop - start >= self.config.partition_rows or group == parquet.num_row_groups - 1:
                    yield range(start, stop)
                    start = stop

    def rows(self, store: Store, file: SourceFile, share: range | None) -> Iterator[SourceRow]:
        with opened_parquet(store, file) as parquet:
            share = range(parquet.metadata.num_rows) if share is None else share
            done = share.start
            try:
                for row in self._read(parquet, share):
                    yield row._replace(source=f"{file.key}#{done}")
                    done += 1
            except (*_BAD, Unfit) as error:  # each row that should be there is accounted for
                broken = Reject("damaged-container", f"the Parquet file breaks here: {error}")
                refusal = error.refusal if isinstance(error, Unfit) else broken
                yield from (SourceRow(f"{file.key}#{row}", refusal) for row in range(done, share.stop))

    def _read(self, parquet: pq.ParquetFile, share: range) -> Iterator[SourceRow]:
        columns = image_columns(parquet.schema_arrow, self.config)
        wanted = [columns.image] + ([columns.label] if columns.label else [])
        for group in _groups(parquet, share):  # one at a time: a damaged one costs no row of the one before
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                yield from self._rows(batch, columns)

    def _rows(self, batch: pa.RecordBatch, columns: ImageColumns) -> Iterator[SourceRow]:
        images = batch.column(columns.image).to_pylist()
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(images)
        for image, label in zip(images, labels, strict=True):
            data = image["bytes"] if columns.nested and image is not None else image
            name = label_name(label, columns.names or self.names)
            if data is None:
                path = image.get("path") if columns.nested and image is not None else None
                detail = "null instead of bytes" + (f" (only the path {path!r})" if path else "")
                yield SourceRow("", Reject("empty", detail), name)
            else:
                yield SourceRow("", data, name)


@contextmanager
def opened_parquet(store: Store, file: SourceFile) -> Iterator[pq.ParquetFile]:
    """The file, its footer read. Raises Unfit when it has none, StorageError."""
    with open_file(store, file) as raw:
        try:
            parquet = pq.ParquetFile(raw, pre_buffer=False)
        except _BAD as error:
            raise Unfit("damaged-container", f"no whole Parquet file: {error}") from error
        with parquet:
            yield parquet


def _groups(parquet: pq.ParquetFile, share: range) -> list[int]:
    """The row groups that begin inside a share."""
    start, found = 0, []
    for group in range(parquet.num_row_groups):
        if start in share:
            found.append(group)
        start += parquet.metadata.row_group(group).num_rows
    return found
