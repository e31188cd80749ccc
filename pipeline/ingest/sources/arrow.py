"""Reader of Arrow files with a column of images, such as the folders of Hugging Face's `datasets.save_to_disk`.

Files are streams or files of Arrow's IPC format. The columns are found as in Parquet files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline.ingest.sources.columns import image_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.parquet import ParquetReader, first_cells
from pipeline.ingest.sources.read import open_file
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.storage.store import Store

ARROW_DOCUMENTS: Final = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files of `save_to_disk` that hold no images."""
_BATCH_ROWS: Final = 32
_BAD: Final = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class ArrowReader:
    """One task reads a whole file, because a stream can only be read from its start. table: reads the columns."""

    table: ParquetReader

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        yield None

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        done = 0
        with open_arrow(store, file) as reader:
            columns = image_columns(reader.schema, self.table.config)
            try:
                for batch in _batches(reader):
                    for start in range(0, batch.num_rows, _BATCH_ROWS):
                        part = batch.slice(start, _BATCH_ROWS)
                        yield from self.table.rows_of(part, columns, file.key, done)
                        done += part.num_rows
            except _BAD as error:
                where = f"after row {done}, the Arrow file breaks here"
                raise UnusableFile("damaged-container", f"{where}: {error}") from error


def _batches(reader: pa.RecordBatchReader | pa.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchReader):
        yield from reader
    else:
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


@contextmanager
def open_arrow(store: Store, file: SourceFile) -> Iterator[pa.RecordBatchReader | pa.RecordBatchFileReader]:
    """The file with its schema read. Raises UnusableFile, StorageError."""
    with open_file(store, file) as raw:
        try:
            reader = pa.ipc.open_file(raw) if raw.peek(6)[:6] == b"ARROW1" else pa.ipc.open_stream(raw)
        except _BAD as error:
            raise UnusableFile("damaged-container", f"no whole Arrow file: {error}") from error
        with reader:
            yield reader


def arrow_sample(store: Store, file: SourceFile, columns: list[str], most: int | None) -> dict[str, list[Any]]:
    """The first cells of some columns, up to a damage. most: None for all. Raises UnusableFile, StorageError."""
    with open_arrow(store, file) as reader:
        return first_cells(_batches(reader), columns, most, "Arrow")
