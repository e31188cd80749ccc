"""Files at rest: JSON documents and Parquet tables, written whole with their sha256 and read back against it."""

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry, Section
from pipeline.errors import NotFound, VerificationFailed
from pipeline.storage.store import Store

__all__ = ["document", "parquet_bytes", "put_file", "put_hashed", "read_parquet", "read_verified", "viewer_rows"]


MAX_GROUP_BYTES = 32 * 2**20


MAX_GROUP_ROWS = 1000


NAME_DIGITS = 12


def document(model: Section) -> bytes:
    """A manifest as indented JSON, keys in the model's order."""
    return (json.dumps(model.model_dump(mode="json"), indent=1) + "\n").encode()


def parquet_bytes(table: pa.Table, row_group_rows: int) -> bytes:
    """A Parquet file in memory, so that it is put whole. Image bytes are compressed already: no dictionary for them."""
    sink = io.BytesIO()
    plain = [name for name in table.column_names if name != "image"]
    pq.write_table(table, sink, row_group_size=row_group_rows, use_dictionary=plain, compression="zstd")
    return sink.getvalue()


def viewer_rows(table: pa.Table) -> int:
    """Rows of a row group that a dataset viewer pages through: at most 1000, and 32 MiB on the average."""
    mean = table.nbytes / max(table.num_rows, 1)
    return int(max(1, min(MAX_GROUP_ROWS, MAX_GROUP_BYTES // max(mean, 1))))


def put_file(store: Store, key: str, data: bytes) -> FileEntry:
    """Store bytes and say what was stored."""
    store.put(key, data)
    return FileEntry(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def put_hashed(store: Store, stem: str, data: bytes) -> FileEntry:
    """Store a Parquet file under a name with its hash: whoever writes it again writes the same bytes, or elsewhere."""
    return put_file(store, f"{stem}-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}.parquet", data)


def read_verified(store: Store, entry: FileEntry) -> bytes:
    """The bytes of a manifest's file. Raises VerificationFailed when they are not those that were written."""
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
