"""Files at rest: written whole, with size and sha256 in a FileEntry, and verified against that entry when read."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry
from pipeline.errors import NotFound, VerificationFailed
from pipeline.storage.store import Store

MAX_GROUP_BYTES = 32 * 2**20
MAX_GROUP_ROWS = 1000
NAME_DIGITS = 12


def file_entry(key: str, data: bytes) -> FileEntry:
    """Key, size in bytes and sha256 (hex) of a file."""
    return FileEntry(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def parquet_bytes(table: pa.Table, row_group_rows: int) -> bytes:
    """A Parquet file in memory (zstd). The image column gets no dictionary: its bytes are compressed already."""
    sink = io.BytesIO()
    plain = [name for name in table.column_names if name != "image"]
    pq.write_table(table, sink, row_group_size=row_group_rows, use_dictionary=plain, compression="zstd")
    return sink.getvalue()


def viewer_rows(table: pa.Table) -> int:
    """Rows per row group for dataset viewers: at most 1000 rows, and 32 MiB at the table's mean row size."""
    mean = table.nbytes / max(table.num_rows, 1)
    return int(max(1, min(MAX_GROUP_ROWS, MAX_GROUP_BYTES // max(mean, 1))))


def put_file(store: Store, key: str, data: bytes) -> FileEntry:
    """Store a file, replacing an earlier one; its entry."""
    store.put(key, data)
    return file_entry(key, data)


def put_hashed(store: Store, stem: str, data: bytes) -> FileEntry:
    """Store a Parquet file under STEM-HASH.parquet, so that a second writer never changes the bytes of a name."""
    return put_file(store, f"{stem}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}.parquet", data)


def read_verified(store: Store, entry: FileEntry) -> bytes:
    """The bytes of a manifest's file. Raises VerificationFailed when the file is missing or differs from its entry."""
    try:
        data = store.read(entry.key)
    except NotFound as error:
        raise VerificationFailed(f"{store.location(entry.key)} is named by its manifest but missing") from error
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise VerificationFailed(
            f"{store.location(entry.key)} is not what its manifest names: {len(data)} bytes with another sha256 or "
            f"length than the {entry.bytes} written; restore it or make the artefact again"
        )
    return data


def read_parquet(store: Store, entry: FileEntry, columns: list[str] | None = None) -> pa.Table:
    """A verified Parquet file as a table."""
    return pq.read_table(pa.BufferReader(read_verified(store, entry)), columns=columns)


def remove_artefact(folder: Store) -> int:
    """Delete every object of a run or a samples folder; the number of objects.

    Documents go first: an interrupted removal leaves data without a manifest, which no reader takes for an artefact.
    """
    keys = sorted((entry.key for entry in folder.list()), key=lambda key: (not _is_document(key), key))
    for key in keys:
        folder.delete(key)
    return len(keys)


def _is_document(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith("_SUCCESS") or name.endswith(".json")
