"""Reader of Parquet files with a column of images (image_cells.py)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.columns import ImageColumns, image_columns
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.image_cells import image_cells
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
                columns = image_columns(parquet.schema_arrow, self.config)
                for batch in self._batches(parquet, row_range, columns):
                    yield from self.rows_of(batch, columns, file.key, done)
                    done += batch.num_rows
            except (*_BAD, UnusableFile) as error:  # every row up to the end of the range gets a reject
                broken = Reject("damaged-container", f"the Parquet file breaks here: {error}")
                reject = error.reject if isinstance(error, UnusableFile) else broken
                yield from (SourceRow(f"{file.key}#{row}", reject) for row in range(done, row_range.stop))

    def _batches(self, parquet: pq.ParquetFile, row_range: range, columns: ImageColumns) -> Iterator[pa.RecordBatch]:
        split = columns.split if self.roles else None
        wanted = list(dict.fromkeys(filter(None, (columns.image, columns.label, split))))
        for group in _groups(parquet, row_range):  # one at a time, so that damage costs no row of the group before
            yield from parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False)

    def rows_of(self, batch: pa.RecordBatch, columns: ImageColumns, name: str, first: int) -> Iterator[SourceRow]:
        """The images of a batch, without those of left-out splits. first: number of its first row in the file `name`.

        Images are named by file and row, and by their place in the row where a row has several.
        """
        nothing = [None] * batch.num_rows
        labels = batch.column(columns.label).to_pylist() if columns.label else nothing
        splits = batch.column(columns.split).to_pylist() if columns.split and self.roles else nothing
        roles = dict(self.roles)
        cells = zip(image_cells(batch.column(columns.image)), labels, splits, strict=True)
        for number, (images, label, split) in enumerate(cells, first):
            role = roles.get(split or "")
            if role == "out":
                continue
            try:
                text, fault = label_from_value(label, columns.names or self.names), None
            except ValueError as error:
                text, fault = None, Reject("unknown-label", str(error))
            for place, image in enumerate(images):
                source = f"{name}#{number}/{place}" if len(images) > 1 else f"{name}#{number}"
                yield SourceRow(source, fault or image, text, role and named_split(role, self.roles))


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


def parquet_sample(store: Store, file: SourceFile, columns: list[str], most: int | None) -> dict[str, list[Any]]:
    """The first cells of some columns, up to a damage. most: None for all. Costs no reading of images.

    Raises UnusableFile, StorageError.
    """
    with open_parquet(store, file) as parquet:
        batches = parquet.iter_batches(4096, columns=columns, use_threads=False)
        return first_cells(batches, columns, most, "Parquet")


def first_cells(
    batches: Iterable[pa.RecordBatch], columns: list[str], most: int | None, kind: str
) -> dict[str, list[Any]]:
    """At least `most` cells of each column where there are so many; None for all.

    A damage ends the cells, or raises UnusableFile where all are wanted. kind: the file's format, for the message.
    """
    found: dict[str, list[Any]] = {name: [] for name in columns}
    try:
        for batch in batches:
            for name in columns:
                found[name] += batch.column(name).to_pylist()
            if most is not None and len(found[columns[0]]) >= most:
                break
    except _BAD as error:
        if most is None:
            raise UnusableFile("damaged-container", f"the {kind} file breaks: {error}") from error
    return found
