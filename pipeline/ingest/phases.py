"""The phases of one ingest, from its plan to its commit: starts their tasks and collects the markers that they return.

The driver process holds a marker for each partition and a count for each slot, never an image.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.config.base import FileEntry
from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError, NotFound, VerificationFailed
from pipeline.ingest.dataset import read_dataset_version, write_dataset
from pipeline.ingest.journal import DeduplicatedSlots, PreparedPartition, WorkFolder
from pipeline.ingest.manifest import DatasetManifest, ShardEntry, channel_statistics
from pipeline.ingest.map_tasks import MapContext, partition_name, prepare_partition
from pipeline.ingest.partitioning import ShardGroup, pieces, rows_per_shard, shard_groups
from pipeline.ingest.reduce_tasks import (
    ReduceContext,
    RejectChunk,
    WriteContext,
    deduplicate,
    write_rejects,
    write_shards,
)
from pipeline.ingest.sorted_runs import RunFormat
from pipeline.ingest.source_listing import read_snapshot
from pipeline.ingest.sources.labels import class_names
from pipeline.ingest.sources.source import Source
from pipeline.progress import Progress
from pipeline.task_pool import fan_out

logger = logging.getLogger("ddpm.ingest")

MARKER_READERS = 16
DEDUPLICATE_BYTES = 64 * 2**20
"""Records and names that one deduplicating task holds, about."""
GROUP_BYTES = 128 * 2**20
"""Encoded images that one writing task holds, about."""
MIN_GROUPS = 16
TEXT_BYTES = 160
"""Memory of the source name and label of one record, about."""
REJECTS_A_FILE = 100_000
TOP_REASONS = 5
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class IngestContext:
    """Inputs of an ingest. parent: manifest of the dataset version to append to, None for a new dataset."""

    config: IngestConfig
    source: Source
    work: WorkFolder
    parent: DatasetManifest | None


@dataclass(frozen=True)
class NewContents:
    """What one ingest adds to a dataset. channel_sums: as in the manifest, of each range of slots."""

    source_rows: int
    shards: tuple[ShardEntry, ...]
    rejects: tuple[FileEntry, ...]
    reject_counts: Counter[str]
    channel_sums: tuple[tuple[int, ...], ...]
    unusable_profiles: int


def make_dataset_version(context: IngestContext) -> DatasetManifest:
    """Run all phases and commit. Several drivers may do this for one plan at the same time.

    Raises DataError when nothing, or a smaller share than ingest.max_reject_share allows, is usable.
    """
    try:
        return _run_phases(context)
    except (NotFound, VerificationFailed):
        # Another driver of this plan may have committed it and removed the work folder under our tasks.
        done = read_dataset_version(context.work.dataset, context.work.plan.generation)
        if done is None:
            raise
        return done


def _run_phases(context: IngestContext) -> DatasetManifest:
    config, work, parent = context.config, context.work, context.parent
    prepared = _prepare(context)
    rejects = _write_rejects(work, prepared)
    counts = sum((Counter(part.reject_counts) for part in prepared), Counter[str]())
    source_rows = sum(part.rows for part in prepared)
    example = next((part.first_reject for part in prepared if part.first_reject is not None), None)
    _check_reject_share(context, source_rows, counts, example)

    runs = tuple(run for part in prepared for run in part.runs)
    slots = _deduplicate(ReduceContext(config, work, parent, runs))
    counts[DUPLICATE] += sum(part.duplicates for part in slots)
    _check_reject_share(context, source_rows, counts, example)

    classes = _classes(context, {label for part in prepared for label in part.labels})
    images, image_bytes = sum(run.rows for run in runs), sum(part.image_bytes for part in prepared)
    shard_rows = rows_per_shard(images, image_bytes, config.shard_rows, config.shard_bytes)
    shards = _write_shards(WriteContext(config, work, parent, runs, classes, shard_rows), slots)

    rejects += tuple(part.rejects for part in slots if part.rejects is not None)
    profiles = _warn_of_profiles(context, prepared)
    added = NewContents(source_rows, shards, rejects, +counts, tuple(part.sums for part in slots), profiles)
    manifest = _manifest(context, classes, added)
    write_dataset(work.dataset, manifest)
    return manifest


def _prepare(context: IngestContext) -> list[PreparedPartition]:
    """The markers of all partitions, in source order."""
    work, done = context.work, context.work.done("prepared")
    with ThreadPoolExecutor(MARKER_READERS) as pool:
        found = pool.map(lambda name: work.read(PreparedPartition, "prepared", name), sorted(done))
        markers = [marker for marker in found if marker is not None]
    partitions = enumerate(read_snapshot(work.dataset, work.plan.snapshot_parts))
    missing = ((number, part) for number, part in partitions if partition_name(number) not in done)
    progress = Progress("reading", work.plan.partitions, "partitions", start=len(markers))
    rows = sum(marker.rows for marker in markers)
    for marker in fan_out(prepare_partition, MapContext(context.config, work, context.source), missing):
        markers.append(marker)
        rows += marker.rows
        progress.update(len(markers), f"{rows:,} images")
    return sorted(markers, key=lambda marker: marker.partition)


def _write_rejects(work: WorkFolder, prepared: Sequence[PreparedPartition]) -> tuple[FileEntry, ...]:
    """Files of rejects in source order. They do not depend on how the source was cut into partitions."""
    files = [part.rejects for part in prepared if part.rejects is not None]
    rows = [sum(part.reject_counts.values()) for part in prepared if part.rejects is not None]
    chunks = (
        (RejectChunk(number, tuple(files[p.parts.start : p.parts.stop]), p.skip, p.stop - p.first),)
        for number, p in enumerate(pieces(rows, REJECTS_A_FILE))
    )
    return tuple(sorted(fan_out(write_rejects, work, chunks), key=lambda entry: entry.key))


def _warn_of_profiles(context: IngestContext, prepared: Sequence[PreparedPartition]) -> int:
    """The number of images with an unusable colour profile."""
    count = sum(part.unusable_profiles for part in prepared)
    if count:
        example = next(part.unusable_profile for part in prepared if part.unusable_profile is not None)
        words = "%d images of %s have a colour profile that cannot be used, such as %s: their pixels count as sRGB"
        logger.warning(words, count, context.source.name, example)
    return count


def _check_reject_share(context: IngestContext, rows: int, counts: Counter[str], example: str | None) -> None:
    """With keep-first, dropped duplicates do not count as rejects: one image of each remains."""
    config, work, name = context.config, context.work, context.source.name
    rejected = counts.total()
    counted = rejected - (counts[DUPLICATE] if config.duplicates == "keep-first" else 0)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(TOP_REASONS))
    shown = f", such as {example}" if example else ""
    listed = f"they are listed in {work.dataset.location('rejects/')}"
    if rejected == rows and context.parent is None:
        work.mark_refused()
        raise DataError(f"none of the {rows:,} images of {name} can be used ({reasons}{shown}); {listed}")
    if counted > config.max_reject_share * rows:
        work.mark_refused()
        raise DataError(
            f"{counted:,} of {rows:,} images of {name} were rejected ({reasons}{shown}), more than "
            f"ingest.max_reject_share = {config.max_reject_share}; {listed}"
        )


def _deduplicate(context: ReduceContext) -> list[DeduplicatedSlots]:
    """The markers of all slots, in order of slot."""
    slots, rows = context.work.plan.slots, sum(run.rows for run in context.runs)
    record_bytes = RunFormat(slots.count, context.config.channels).record.itemsize + TEXT_BYTES
    size = max(1, DEDUPLICATE_BYTES * slots.count // max(1, rows * record_bytes))
    calls = [(part,) for split in ("train", "heldout") for part in slots.ranges(split, size)]
    return sorted(fan_out(deduplicate, context, calls), key=lambda part: part.first)


def _classes(context: IngestContext, labels: set[str]) -> tuple[str, ...] | None:
    """Classes of the parent keep their numbers, and new ones follow."""
    known = () if context.parent is None else context.parent.classes or ()
    named = context.source.classes
    if named is None:
        named = class_names(labels | set(known)) or ()
    following = dict.fromkeys((*known, *named, *sorted(labels)))
    return tuple(following) or None


def _write_shards(context: WriteContext, slots: Sequence[DeduplicatedSlots]) -> tuple[ShardEntry, ...]:
    """All shards in order of sample id, so training shards first."""
    groups = list(_shard_groups(context, slots))
    progress = Progress("writing", sum(group.stop - group.first for group in groups), "images")
    shards: list[ShardEntry] = []
    for entries in fan_out(write_shards, context, ((group,) for group in groups)):
        shards += entries
        progress.update(sum(shard.rows for shard in shards))
    progress.close()
    return tuple(sorted(shards, key=lambda shard: shard.first_id))


def _shard_groups(context: WriteContext, slots: Sequence[DeduplicatedSlots]) -> Iterator[ShardGroup]:
    in_slots = np.concatenate([np.array(part.kept, np.int64) for part in slots])
    shards = -(-int(in_slots.sum()) // context.shard_rows)
    stored = sum(run.bytes for run in context.runs)
    shard_bytes = max(1, stored // max(shards, 1))
    together = max(1, min(GROUP_BYTES // shard_bytes, -(-shards // MIN_GROUPS)))
    return shard_groups(in_slots, context.work.plan.slots, context.shard_rows, together)


def _manifest(context: IngestContext, classes: tuple[str, ...] | None, added: NewContents) -> DatasetManifest:
    """The parent's manifest with the new contents appended."""
    plan, config, parent = context.work.plan, context.config, context.parent
    shards = (*(parent.shards if parent else ()), *added.shards)
    counts = added.reject_counts + Counter(parent.reject_counts if parent else {})
    sums = ([parent.channel_sums] if parent else []) + list(added.channel_sums)
    total = np.array(sums, dtype=object).sum(0).tolist()
    mean, std = channel_statistics(total, sum(shard.rows for shard in shards) * config.image_size**2)
    return DatasetManifest(
        source=plan.source,
        source_rows=added.source_rows + (parent.source_rows if parent else 0),
        image_size=config.image_size,
        channels=config.channels,
        classes=classes,
        shards=shards,
        rejects=(*(parent.rejects if parent else ()), *added.rejects),
        reject_counts=dict(sorted(counts.items())),
        channel_mean=mean,
        channel_std=std,
        channel_sums=tuple(total),
        ingest=plan.settings,
        generation=plan.generation,
        parent=plan.parent,
        snapshot=plan.snapshot,
        unusable_profiles=added.unusable_profiles + (parent.unusable_profiles if parent else 0),
        snapshots=(*(parent.snapshots if parent else ()), *plan.snapshot_parts),
        removed_files=plan.removed_files,
        label_source=context.source.info.labels.name,
        splits=context.source.info.splits,
    )
