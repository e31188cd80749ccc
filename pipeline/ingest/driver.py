"""`ddpm ingest`: decode, deduplicate and shuffle the images of a source into the Parquet shards of a dataset version.

An external sort in two passes of Ray tasks, so that no process holds more than a small share of the images:

    plan         list the new files of the source and claim the next dataset version      source_listing, journal
    prepare      per partition of the source: decode, hash, write sorted runs and rejects map_tasks
    deduplicate  per range of slots: which images with equal pixels stay, and how many    reduce_tasks
    write        per group of shards: read the slots from all sorted runs, write shards   reduce_tasks
    commit       write the manifest; only then delete temporary files                     dataset, journal

Terms used in this folder:

    partition        files of the source, or rows of one large file, that one task of the first pass reads
    shuffle key      64-bit hash of seed and pixels; the sort order (partitioning)
    slot             one of many equal ranges of shuffle keys, so equal images fall into one slot (partitioning)
    sorted run       temporary file of prepared images, sorted by slot (sorted_runs); no relation to a training run
    marker           small file that records a finished task, created once (journal)
    dataset version  one committed ingest; manifests call its number `generation`
    parent           the dataset version before, to which a new one appends
    snapshot         the list of source files that one dataset version read (source_listing)

Each image ends either in data/ or in rejects/, exactly once. Order and split are functions of the pixels, so a dataset
does not depend on the number of tasks or on reruns, and an image stays in its split when others are added. A killed
ingest continues from its markers. Ingesting a source with new files adds a dataset version.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.ingest.dataset import MANIFEST, dataset_version_key, finish_commit, read_dataset, read_dataset_version
from pipeline.ingest.journal import (
    IngestPlan,
    WorkFolder,
    claim,
    delete_leftovers,
    different_settings,
    read_plan,
    withdraw_plan,
)
from pipeline.ingest.manifest import DatasetManifest
from pipeline.ingest.partitioning import Slots
from pipeline.ingest.phases import IngestContext, make_dataset_version
from pipeline.ingest.preview import describe, labels_text
from pipeline.ingest.source_listing import KnownFiles, Snapshot, write_snapshot
from pipeline.ingest.sources.label_map import with_label_map
from pipeline.ingest.sources.open import open_source
from pipeline.ingest.sources.source import Partition, Source
from pipeline.storage.create_once import try_create
from pipeline.storage.credentials import without_credentials
from pipeline.storage.documents import to_json
from pipeline.storage.store import Store, resolve

logger = logging.getLogger("ddpm.ingest")

NAMED_SHARE = 0.1
"""Guess of the held-out share for the number of slots, where the source names the held-out images."""


def ingest(config: Config, source: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Create the dataset, continue an unfinished ingest, or append what is new in the source; else change nothing.

    Raises ConfigError when the folder holds, or is claimed for, another dataset; DataError when no image is usable or
    more than ingest.max_reject_share were rejected.
    """
    began = time.monotonic()
    config = with_label_map(config)  # the content of a label map decides the dataset, not where its file is
    request = IngestRequest(resolve(dataset, config.storage), open_source(source, config), config.ingest)
    state, removed = "already done", 0
    for note in () if dry_run else request.source.info.notes:
        logger.warning("%s: %s", request.source.name, note)
    while True:
        newest = request.newest_version()
        request.check_same_dataset(newest)
        if dry_run:
            return describe(request.source, request.describe(newest))
        joined = read_plan(request.store, _next_number(newest)) is not None
        plan, removed = request.plan(newest)
        if plan is None:
            break
        with cluster(config.ray, max(2, os.cpu_count() or 2)):
            work = WorkFolder(request.store, plan)
            newest = make_dataset_version(IngestContext(config.ingest, request.source, work, newest))
        state = "ingested" if plan.generation == 1 else "grown"
        if not joined:  # else the plan is older than this command, and the source may have grown since
            break
    assert newest is not None
    delete_leftovers(request.store, newest)
    return {**_result(request.store, newest, state, removed), "seconds": round(time.monotonic() - began, 1)}


def _next_number(newest: DatasetManifest | None) -> int:
    return 1 if newest is None else newest.generation + 1


@dataclass(frozen=True)
class IngestRequest:
    """The dataset folder of a command, and the source and settings to ingest into it."""

    store: Store
    source: Source
    config: IngestConfig

    def newest_version(self) -> DatasetManifest | None:
        """The newest committed version. An interrupted commit is finished first."""
        newest = read_dataset(self.store) if self.store.exists(MANIFEST) else None
        while (newer := read_dataset_version(self.store, _next_number(newest))) is not None:
            newest = newer
            finish_commit(self.store, newest)
        return newest

    def check_same_dataset(self, newest: DatasetManifest | None) -> None:
        """Raises ConfigError when the dataset was made from another source or with other settings."""
        if newest is None:
            return
        different = different_settings(newest.ingest, self.config.model_dump(mode="json"))
        if newest.source != without_credentials(self.source.name):
            different.insert(0, f"source, {newest.source} there")
        if different:
            names = ", ".join(different)
            raise ConfigError(f"{self.store.uri} holds another dataset (different: {names}): choose another --dataset")

    def _check_same_labels(self, newest: DatasetManifest) -> None:
        """Raises ConfigError when new images would get labels or splits from elsewhere than those of the dataset."""
        info, there = self.source.info, newest.label_source
        if there is not None and info.labels.name is not None and info.labels.name != there:
            raise ConfigError(
                f"the labels of {self.store.uri} come from {there}, those of new images would come from "
                f"{info.labels.name}: set ingest.label_source or ingest.label_column, or choose another --dataset"
            )
        old = [split for split in newest.splits if split[1] == "heldout"]
        if old != [split for split in info.splits if split[1] == "heldout"]:
            raise ConfigError(
                f"{self.store.uri} has held-out images {_by(old)}, new ones would be held out {_by(info.splits)}: set "
                "ingest.splits (none: as before splits had names), or choose another --dataset"
            )

    def describe(self, newest: DatasetManifest | None) -> str:
        """What an ingest would do now, in one sentence."""
        partitions = sum(1 for _ in self.source.partitions(self._known_files(newest)))
        if newest is not None and (newest.snapshot is None or not partitions):
            return f"already done: {self.source.name} has no image that is not in {self.store.uri}"
        action = "ingest" if newest is None else f"add dataset version {newest.generation + 1} from"
        return f"would {action} {self.source.name} in {partitions:,} partitions to {self.store.uri}"

    def plan(self, newest: DatasetManifest | None) -> tuple[IngestPlan | None, int]:
        """The claimed plan of the next version (None: nothing is new), and how many files the source no longer has."""
        existing = read_plan(self.store, _next_number(newest))
        requested = {
            "source": without_credentials(self.source.name),
            "parent": None if newest is None else newest.digest(),
            "settings": self.config.model_dump(mode="json"),
        }
        if existing is not None:
            claim(self.store, existing.model_copy(update=requested))
            if not WorkFolder(self.store, existing).is_refused:
                return existing, existing.removed_files
        if newest is not None and newest.snapshot is None:  # from before snapshots existed: cannot grow
            return None, 0
        known = self._known_files(newest)
        snapshot = write_snapshot(self.store, _next_number(newest), _new_partitions(self.source, known))
        removed = known.unseen
        if not snapshot.partitions:
            if newest is None:
                raise DataError(f"no images at {self.source.name}")
            return None, removed
        if newest is not None:
            self._check_same_labels(newest)
        if newest is not None and read_dataset_version(self.store, newest.generation) is None:
            try_create(self.store, dataset_version_key(newest.generation), to_json(newest))
        if existing is not None and existing.snapshot == snapshot.digest:
            return existing, removed
        if existing is not None:
            withdraw_plan(WorkFolder(self.store, existing))
        plan = self._new_plan(_next_number(newest), snapshot, {**requested, "removed_files": removed})
        return claim(self.store, plan), removed

    def _known_files(self, newest: DatasetManifest | None) -> KnownFiles:
        return KnownFiles(self.store, () if newest is None else newest.snapshots)

    def _new_plan(self, version: int, snapshot: Snapshot, values: dict[str, Any]) -> IngestPlan:
        ingest = self.config
        # Decoded pixels bound the size of stored images; of files with many images only the file size is known.
        estimate = max(snapshot.rows * ingest.image_size**2 * ingest.channels, snapshot.file_bytes)
        named = self.source.info.has_named_splits
        slots = Slots.for_bytes(estimate, (ingest.heldout_share or NAMED_SHARE) if named else ingest.heldout_share)
        return IngestPlan(
            generation=version,
            snapshot=snapshot.digest,
            snapshot_parts=snapshot.parts,
            partitions=snapshot.partitions,
            train_slots=slots.train,
            heldout_slots=slots.heldout,
            named_splits=named,
            **values,
        )


def _by(splits: Sequence[tuple[str, str]]) -> str:
    names = [name for name, role in splits if role == "heldout"]
    return f"by the names {', '.join(names)}" if names else "by their content"


def _new_partitions(source: Source, known: KnownFiles) -> Iterator[Partition]:
    """Partitions with a new file. Known files that are read again with one (labels beside new images) count as seen."""
    for partition in source.partitions(known):
        known.mark_seen(partition.files)
        yield partition


def _result(store: Store, manifest: DatasetManifest, state: str, removed: int) -> dict[str, Any]:
    train, heldout = manifest.rows("train"), manifest.rows("heldout")
    rejected = sum(manifest.reject_counts.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.reject_counts.items())
    classes = labels_text(manifest)
    listed = f" ({reasons}; listed in {store.location('rejects/')})" if rejected else ""
    gone = f", {removed:,} files are gone from the source or changed: their images stay" if removed else ""
    version = f" (dataset version {manifest.generation})" if manifest.generation > 1 else ""
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
        "label_source": manifest.label_source,
        "splits": dict(manifest.splits),
        "summary": f"{state}: {train:,} training and {heldout:,} held-out images, {classes}, {rejected:,} rejected"
        f"{listed}{gone} -> {store.uri}{version}",
    }
