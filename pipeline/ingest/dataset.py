"""Datasets at rest: shuffled Parquet shards and the manifests that name them.

    manifests/000001.json   generation 1, created once; generation g names the digest of g - 1 and appends to it
    manifest.json           a copy of the newest, moved on by compare-and-swap: what readers take

A generation exists from the moment that its file in manifests/ does.
"""

from pipeline.errors import AlreadyExists, DataError, NotFound
from pipeline.ingest.manifest import DatasetManifest
from pipeline.storage.create_once import create_or_read
from pipeline.storage.documents import find_document, parse, to_json
from pipeline.storage.store import Store

__all__ = ["dataset_version_key", "finish_commit", "read_dataset", "read_dataset_version", "write_dataset"]

MANIFEST = "manifest.json"


def dataset_version_key(generation: int) -> str:
    """Where the manifest of one generation is, relative to the dataset."""
    return f"manifests/{generation:06d}.json"


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
        manifest = read_dataset_version(store, generation)
        if manifest is not None and manifest.digest() == digest:
            return manifest
    raise DataError(
        f"{store.uri} has no generation with digest {digest[:16]}...: it is another dataset, or was made again "
        f"(its newest generation, {newest.generation}, is {newest.digest()[:16]}...)"
    )


def read_dataset_version(store: Store, generation: int) -> DatasetManifest | None:
    """The manifest of one generation, or None."""
    return find_document(store, dataset_version_key(generation), DatasetManifest)


def write_dataset(store: Store, manifest: DatasetManifest) -> None:
    """Commit a generation. Raises AlreadyExists when there is another one of its number."""
    key, data = dataset_version_key(manifest.generation), to_json(manifest)
    if create_or_read(store, key, data) != data:
        raise AlreadyExists(f"{store.location(key)} exists already with other content: another ingest was faster")
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
            store.compare_and_swap(MANIFEST, to_json(manifest), version)
            return
        except AlreadyExists:
            continue
