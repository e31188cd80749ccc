"""Reader of LMDB databases whose values are encoded images, as of LSUN (extra `lmdb`).

A database is a folder with data.mdb, or one file. Of several databases in a folder, the first folder of each is the
label of its images and may name a split: LSUN's bridge_val_lmdb is label bridge, split val. The library maps a database
into memory, so it must lie on a local or shared disk.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pipeline.config.ingest import IngestConfig
from pipeline.errors import ConfigError
from pipeline.images.file_types import is_lmdb_lock
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import ContainerSource, UnusableFile
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose, label_from_path
from pipeline.ingest.sources.read import read_head, visible_files
from pipeline.ingest.sources.source import SourceFile, SourceRow, chunk_rows
from pipeline.ingest.sources.splits import roles_of, split_in_name
from pipeline.storage.store import Store

_APPENDED: Final = re.compile(r"(_(train|val|test))?_lmdb$")
_MOST_CHUNKS: Final = 256
"""A task walks over the keys before its own, so a large database has few large ranges."""
_COUNTERS: Final = (b"length", b"num-samples", b"__len__", b"__keys__")
"""Keys under which programs store the number of images."""


@dataclass(frozen=True)
class LmdbReader:
    """Row numbers count the keys in their order. labels: whether the first folder of a database is its label."""

    partition_rows: int
    max_bytes: int
    labels: bool

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        with _opened(store, file) as (transaction, _):
            count = transaction.stat()["entries"]
        yield from chunk_rows(count, max(self.partition_rows, -(-count // _MOST_CHUNKS)))

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        label = _label(file.key) if self.labels else None
        with _opened(store, file) as (transaction, errors):
            try:
                cursor = transaction.cursor()
                wanted = (None, None) if row_range is None else (row_range.start, row_range.stop)
                for key in map(bytes, islice(cursor.iternext(keys=True, values=False), *wanted)):
                    if key not in _COUNTERS:
                        name = f"{file.key}#{key.decode('utf-8', 'backslashreplace')}"
                        yield SourceRow(name, self._image(cursor.value()), label)
            except errors as error:
                raise UnusableFile("damaged-container", f"the LMDB database breaks here: {error}") from error

    def _image(self, value: Any) -> bytes | Reject:
        if len(value) > self.max_bytes:
            return Reject("too-many-bytes", f"{len(value)} bytes are more than {self.max_bytes}")
        return bytes(value)


def open_lmdb(name: str, store: Store, files: list[SourceFile] | None, config: IngestConfig) -> ContainerSource:
    """A source of one database, or (files: None) of all databases of a folder. Raises ConfigError, StorageError."""
    if store.kind != "local":
        raise ConfigError(f"{name} is an LMDB database, which is read from a disk only: copy it there, or to Parquet")
    _library()
    if files is None:
        files = [file for file in visible_files(store) if not is_lmdb_lock(read_head(store, file))]
    roles = roles_of((split_in_name(file.key) for file in files), config, name)
    labels = tuple(_label(file.key) for file in files)
    several = len(set(labels)) > 1 and None not in labels
    choice = choose(name, [Candidate("folders", "the folders of the databases", labels)] if several else [], config)
    reader = LmdbReader(config.partition_rows, config.max_image_bytes, choice.candidate is not None)
    info = SourceInfo("LMDB", labels=choice, splits=roles)
    return ContainerSource(name, store, "lmdb", reader, None, tuple(files), roles, info=info)


def _label(key: str) -> str | None:
    """The first folder without what LSUN appends to the name of a category."""
    folder = label_from_path(key)
    return None if folder is None else _APPENDED.sub("", folder)


def _library() -> Any:
    try:
        import lmdb  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ConfigError("a source in LMDB needs the library lmdb: pip install 'ddpm-pipeline[lmdb]'") from error
    return lmdb


@contextmanager
def _opened(store: Store, file: SourceFile) -> Iterator[tuple[Any, Any]]:
    """A read transaction without locks, and the errors of the library. Raises UnusableFile."""
    lmdb = _library()
    path = store.location(file.key)
    try:
        database = lmdb.open(path, subdir=False, readonly=True, lock=False, create=False, readahead=False)
    except lmdb.Error as error:
        raise UnusableFile("damaged-container", f"no LMDB database: {error}") from error
    with database:
        pages, page_bytes = database.info()["last_pgno"] + 1, database.stat()["psize"]
        if pages * page_bytes > file.size:  # a read past the end of the file would kill this process
            raise UnusableFile(
                "damaged-container", f"{file.size} bytes, and its {pages} pages need {pages * page_bytes}"
            )
        with database.begin(buffers=True) as transaction:
            yield transaction, lmdb.Error
