"""Source images -> dataset: every row ends once, in data/ or in rejects/, and nobody holds all of them at a time.

    plan      list what is new in the source; claim the next generation of the dataset
    prepare   a task a partition: decode, hash, write runs sorted by slot            (pipeline.ingest.map_tasks)
    settle    a task a range of slots: which of equal images stay, and how many      (pipeline.ingest.reduce_tasks)
    write     a task a group of shards: gather from the runs, order, write
    commit    one manifest; only then is anything temporary removed

Order and split are functions of content (pipeline.ingest.partitioning): neither the number of tasks nor a rerun changes
the dataset, and an image stays on its side of the split when others are added. A killed ingest continues from its
markers; an ingest of a source that has grown adds a dataset version.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.ingest.dataset import MANIFEST, dataset_version_key, finish_commit, read_dataset, read_dataset_version
from pipeline.ingest.journal import IngestPlan, Work, claim, different_settings, read_plan, sweep, withdraw
from pipeline.ingest.manifest import DatasetManifest
from pipeline.ingest.partitioning import Slots
from pipeline.ingest.phases import make_dataset_version
from pipeline.ingest.source_listing import KnownFiles, Snapshot, write_snapshot
from pipeline.ingest.sources.label_map import with_label_map
from pipeline.ingest.sources.open import open_source
from pipeline.ingest.sources.source import Partition, Source
from pipeline.storage.create_once import try_create
from pipeline.storage.credentials import without_credentials
from pipeline.storage.documents import to_json
from pipeline.storage.store import Store, resolve

__all__ = ["ingest"]


def ingest(config: Config, source: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Make the dataset, go on with a half-made one, or add what is new in its source; else leave it as it is.

    Raises ConfigError when the folder holds, or is claimed for, another dataset; DataError when nothing usable is left
    or more than ingest.max_reject_share was rejected.
    """
    began = time.monotonic()
    config = with_label_map(config)  # its content decides the dataset, not where it lay
    store, opened = resolve(dataset, config.storage), open_source(source, config)
    state, removed = "already done", 0
    while True:
        head = _head(store)
        _check_same(store, head, config, opened)
        if dry_run:
            return {"summary": _describe(store, head, opened)}
        joined = read_plan(store, _next(head)) is not None
        plan, removed = _plan(config, store, opened, head)
        if plan is None:
            break
        with cluster(config.ray, max(2, os.cpu_count() or 2)):
            head = make_dataset_version(config.ingest, opened, Work(store, plan), head)
        state = "ingested" if plan.generation == 1 else "grown"
        if not joined:  # else the plan is older than this command, and the source may have grown since
            break
    assert head is not None
    sweep(store, head)
    return {**_result(store, head, state, removed), "seconds": round(time.monotonic() - began, 1)}


def _next(head: DatasetManifest | None) -> int:
    return 1 if head is None else head.generation + 1


def _head(store: Store) -> DatasetManifest | None:
    """The newest generation; one whose commit was cut short is first made visible."""
    head = read_dataset(store) if store.exists(MANIFEST) else None
    while (newer := read_dataset_version(store, _next(head))) is not None:
        head = newer
        finish_commit(store, head)
    return head


def _check_same(store: Store, head: DatasetManifest | None, config: Config, source: Source) -> None:
    if head is None:
        return
    different = different_settings(head.ingest, config.ingest.model_dump(mode="json"))
    if head.source != without_credentials(source.name):
        different.insert(0, f"source, {head.source} there")
    if different:
        what = ", ".join(different)
        raise ConfigError(f"{store.uri} holds another dataset (different: {what}): choose another --dataset")


def _describe(store: Store, head: DatasetManifest | None, source: Source) -> str:
    partitions = sum(1 for _ in source.partitions(KnownFiles(store, () if head is None else head.snapshots)))
    if head is not None and (head.snapshot is None or not partitions):
        return f"already done: {source.name} has nothing that {store.uri} has not"
    what = "ingest" if head is None else f"add generation {head.generation + 1} from"
    return f"would {what} {source.name} in {partitions:,} partitions to {store.uri}"


def _plan(config: Config, store: Store, source: Source, head: DatasetManifest | None) -> tuple[IngestPlan | None, int]:
    """What to do next, claimed (None: nothing is new), and how many files are no longer in the source."""
    existing = read_plan(store, _next(head))
    asked = {
        "source": without_credentials(source.name),
        "parent": None if head is None else head.digest(),
        "settings": config.ingest.model_dump(mode="json"),
    }
    if existing is not None:
        claim(store, existing.model_copy(update=asked))
        if not Work(store, existing).is_refused:
            return existing, existing.removed_files
    if head is not None and head.snapshot is None:  # made before the files of a source were listed: cannot grow
        return None, 0
    known = KnownFiles(store, () if head is None else head.snapshots)
    snapshot = write_snapshot(store, _next(head), _new_partitions(source, known))
    removed = known.unseen
    if not snapshot.partitions:
        if head is None:
            raise DataError(f"no images at {source.name}")
        return None, removed
    if head is not None and read_dataset_version(store, head.generation) is None:
        try_create(store, dataset_version_key(head.generation), to_json(head))
    if existing is not None and existing.snapshot == snapshot.digest:
        return existing, removed
    if existing is not None:
        withdraw(Work(store, existing))
    return claim(store, _new_plan(config, _next(head), snapshot, {**asked, "removed_files": removed})), removed


def _new_partitions(source: Source, known: KnownFiles) -> Iterator[Partition]:
    """Partitions with a file that is new; what is known and read again (labels beside new images) is not gone."""
    for partition in source.partitions(known):
        known.see(partition.files)
        yield partition


def _new_plan(config: Config, generation: int, snapshot: Snapshot, values: dict[str, Any]) -> IngestPlan:
    ingest = config.ingest
    # Decoded images are the upper bound of what is stored; files of many images are known by their bytes only.
    estimate = max(snapshot.rows * ingest.image_size**2 * ingest.channels, snapshot.file_bytes)
    slots = Slots.for_bytes(estimate, ingest.heldout_share)
    return IngestPlan(
        generation=generation,
        snapshot=snapshot.digest,
        snapshot_parts=snapshot.parts,
        partitions=snapshot.partitions,
        train_slots=slots.train,
        heldout_slots=slots.heldout,
        **values,
    )


def _result(store: Store, manifest: DatasetManifest, state: str, removed: int) -> dict[str, Any]:
    train, heldout = manifest.rows("train"), manifest.rows("heldout")
    rejected = sum(manifest.reject_counts.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.reject_counts.items())
    classes = f"{len(manifest.classes)} classes" if manifest.classes else "no labels"
    listed = f" ({reasons}; listed in {store.location('rejects/')})" if rejected else ""
    gone = f", {removed:,} files are gone from the source or changed: their images stay" if removed else ""
    return {
        "state": state,
        "uri": store.uri,
        "digest": manifest.digest(),
        "generation": manifest.generation,
        "source_rows": manifest.source_rows,
        "train": train,
        "heldout": heldout,
        "rejects": manifest.reject_counts,
        "removed_files": removed,
        "classes": None if manifest.classes is None else len(manifest.classes),
        "summary": f"{state}: {train:,} training and {heldout:,} held-out images, {classes}, {rejected:,} rejected"
        f"{listed}{gone} -> {store.uri}" + (f" (generation {manifest.generation})" if manifest.generation > 1 else ""),
    }
