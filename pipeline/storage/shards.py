"""Datasets at rest: shuffled Parquet shards and the manifests that name them.

    manifests/000001.json   generation 1, created once; generation g names the digest of g - 1 and appends to it
    manifest.json           a copy of the newest, moved on by compare-and-swap: what readers take

A generation exists from the moment that its file in manifests/ does.
"""

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Section
from pipeline.errors import AlreadyExists, DataError, NotFound, VerificationFailed
from pipeline.manifests import DatasetManifest, FileEntry, parse
from pipeline.storage.store import Store

__all__ = [
    "document",
    "finish_commit",
    "generation_key",
    "parquet_bytes",
    "put_file",
    "put_hashed",
    "read_dataset",
    "read_generation",
    "read_parquet",
    "read_verified",
    "viewer_rows",
    "write_dataset",
]

MANIFEST = "manifest.json"
MAX_GROUP_BYTES = 32 * 2**20
MAX_GROUP_ROWS = 1000
NAME_DIGITS = 12


def generation_key(generation: int) -> str:
    """Where the manifest of one generation is, relative to the dataset."""
    return f"manifests/{generation:06d}.json"


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


def read_dataset(store: Store, digest: str | None = None) -> DatasetManifest:
    """The newest generation of a dataset, or the one with this digest.

    Raises DataError when there is no dataset, or no such generation of it.
    """
    try:
        data = store.read(MANIFEST)
    except NotFound as error:
        raise DataError(f"no dataset at {store.uri}: {MANIFEST} is missing (ddpm ingest makes one)") from error
    newest = parse(DatasetManifest, data, store.location(MANIFEST))
    if digest is None or newest.digest() == digest:
        return newest
    for generation in range(newest.generation - 1, 0, -1):
        manifest = read_generation(store, generation)
        if manifest is not None and manifest.digest() == digest:
            return manifest
    raise DataError(
        f"{store.uri} has no generation with digest {digest[:16]}...: it is another dataset, or was made again "
        f"(its newest generation, {newest.generation}, is {newest.digest()[:16]}...)"
    )


def read_generation(store: Store, generation: int) -> DatasetManifest | None:
    """The manifest of one generation, or None."""
    key = generation_key(generation)
    try:
        return parse(DatasetManifest, store.read(key), store.location(key))
    except NotFound:
        return None


def write_dataset(store: Store, manifest: DatasetManifest) -> None:
    """Commit a generation. Raises AlreadyExists when there is another one of its number."""
    key, data = generation_key(manifest.generation), document(manifest)
    try:
        store.create_once(key, data)
    except AlreadyExists:
        if store.read(key) != data:  # else it was us, or an equal ingest
            raise
    finish_commit(store, manifest)


def finish_commit(store: Store, manifest: DatasetManifest) -> None:
    """Let `manifest.json` show a committed generation, or a newer one."""
    while True:
        try:
            shown, version = store.read_versioned(MANIFEST)
            if parse(DatasetManifest, shown, store.location(MANIFEST)).generation >= manifest.generation:
                return
        except NotFound:
            version = None
        try:
            store.compare_and_swap(MANIFEST, document(manifest), version)
            return
        except AlreadyExists:
            continue
