"""Read and commit dataset versions: one manifest file for each version, and a copy of the newest one for readers.

    manifests/000001.json   dataset version 1, created once; version v names the digest of v - 1 and appends to it
    manifest.json           a copy of the newest version's manifest, replaced by compare-and-swap

A dataset version exists as soon as its file in manifests/ exists.
"""

from pipeline.errors import AlreadyExists, DataError, NotFound
from pipeline.ingest.manifest import DatasetManifest
from pipeline.storage.create_once import create_or_read
from pipeline.storage.documents import find_document, parse, to_json
from pipeline.storage.store import Store

MANIFEST = "manifest.json"


def dataset_version_key(version: int) -> str:
    """Key of one version's manifest, relative to the dataset."""
    return f"manifests/{version:06d}.json"


def read_dataset(store: Store, digest: str | None = None) -> DatasetManifest:
    """The newest version of a dataset, or the version with this digest.

    Raises DataError when there is no dataset, or no version of it with this digest.
    """
    try:
        data = store.read(MANIFEST)
    except NotFound as error:
        raise DataError(f"no dataset at {store.uri}: {MANIFEST} is missing (ddpm ingest makes one)") from error
    newest = parse(DatasetManifest, data, store.location(MANIFEST))
    if digest is None or newest.digest() == digest:
        return newest
    for version in range(newest.generation - 1, 0, -1):
        manifest = read_dataset_version(store, version)
        if manifest is not None and manifest.digest() == digest:
            return manifest
    raise DataError(
        f"{store.uri} has no version with digest {digest[:16]}...: the URI names another dataset, or the dataset was "
        f"ingested again from scratch (its newest version, {newest.generation}, has {newest.digest()[:16]}...)"
    )


def read_dataset_version(store: Store, version: int) -> DatasetManifest | None:
    """The manifest of one version, or None."""
    return find_document(store, dataset_version_key(version), DatasetManifest)


def write_dataset(store: Store, manifest: DatasetManifest) -> None:
    """Commit a dataset version. Raises AlreadyExists when a different one with this number exists."""
    key, data = dataset_version_key(manifest.generation), to_json(manifest)
    if create_or_read(store, key, data) != data:
        raise AlreadyExists(f"{store.location(key)} exists already with other content: another ingest was faster")
    finish_commit(store, manifest)


def finish_commit(store: Store, manifest: DatasetManifest) -> None:
    """Make `manifest.json` a copy of this committed version, unless it already shows this one or a newer one."""
    while True:
        try:
            shown, token = store.read_versioned(MANIFEST)
            if parse(DatasetManifest, shown, store.location(MANIFEST)).generation >= manifest.generation:
                return
        except NotFound:
            token = None
        try:
            store.compare_and_swap(MANIFEST, to_json(manifest), token)
            return
        except AlreadyExists:
            continue
