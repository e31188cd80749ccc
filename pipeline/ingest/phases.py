"""One generation of a dataset, from its plan to its commit: what the driver of an ingest does between tasks.

The driver holds a marker a partition and a count a slot, never a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipeline.config.base import FileEntry
from pipeline.config.ingest import IngestConfig
from pipeline.errors import DataError, NotFound, VerificationFailed
from pipeline.ingest.dataset import read_dataset_version, write_dataset
from pipeline.ingest.journal import Prepared, Settled, Work
from pipeline.ingest.manifest import DatasetManifest, ShardEntry, channel_statistics
from pipeline.ingest.map_tasks import IngestContext, partition_name, prepare
from pipeline.ingest.partitioning import Group, output_groups, rows_a_shard
from pipeline.ingest.reduce_tasks import RejectChunk, settle, write, write_rejects
from pipeline.ingest.sorted_runs import record_type
from pipeline.ingest.source_listing import read_snapshot
from pipeline.ingest.sources.source import Source, class_names
from pipeline.progress import Progress
from pipeline.task_pool import fan_out

__all__ = ["make_dataset_version"]

MARKER_READERS = 16
SETTLE_BYTES = 64 * 2**20
"""Records and names that one settling task holds, about."""
GROUP_BYTES = 128 * 2**20
"""Encoded images that one writing task holds, about."""
MIN_GROUPS = 16
TEXT_BYTES = 160
"""Of one record, roughly, with what Python adds to it."""
REJECTS_A_FILE = 100_000
TOP_REASONS = 5
DROPPED = "duplicate"


def make_dataset_version(
    config: IngestConfig, source: Source, work: Work, parent: DatasetManifest | None
) -> DatasetManifest:
    """Raises DataError when too little can be used. Safe beside other drivers of the same plan."""
    try:
        return _made(IngestContext(config, work, source, parent))
    except (NotFound, VerificationFailed):
        # Another driver of this plan may have committed it and removed what we were reading.
        done = read_dataset_version(work.dataset, work.plan.generation)
        if done is None:
            raise
        return done


def _made(context: IngestContext) -> DatasetManifest:
    prepared = _prepare(context)
    rejects = _write_rejects(context, prepared)
    counts = Counter[str]()
    for part in prepared:
        counts.update(part.reject_counts)
    rows = sum(part.rows for part in prepared)
    _check_share(context, rows, counts)
    context = replace(context, runs=tuple(run for part in prepared for run in part.runs))
    settled = _settle(context)
    counts.update({DROPPED: sum(part.duplicates for part in settled)})
    _check_share(context, rows, counts)
    context = replace(
        context,
        classes=_classes(context, {label for part in prepared for label in part.labels}),
        shard_rows=rows_a_shard(
            sum(run.rows for run in context.runs),
            sum(part.image_bytes for part in prepared),
            context.config.shard_rows,
            context.config.shard_bytes,
        ),
    )
    shards = _write(context, settled)
    rejects += tuple(part.rejects for part in settled if part.rejects is not None)
    manifest = _manifest(context, rows, +counts, (shards, rejects, settled))
    write_dataset(context.work.dataset, manifest)
    return manifest


def _prepare(context: IngestContext) -> list[Prepared]:
    """The markers of all partitions, in the order of the source."""
    plan, done = context.work.plan, context.work.done("prepared")
    with ThreadPoolExecutor(MARKER_READERS) as pool:
        found = pool.map(lambda name: context.work.read(Prepared, "prepared", name), sorted(done))
        markers = [marker for marker in found if marker is not None]
    partitions = enumerate(read_snapshot(context.work.dataset, plan.snapshot_parts))
    missing = ((number, part) for number, part in partitions if partition_name(number) not in done)
    progress = Progress("reading", plan.partitions, "partitions", start=len(markers))
    rows = sum(marker.rows for marker in markers)
    for marker in fan_out(prepare, context, missing):
        markers.append(marker)
        rows += marker.rows
        progress.update(len(markers), f"{rows:,} images")
    return sorted(markers, key=lambda marker: marker.partition)


def _write_rejects(context: IngestContext, prepared: Sequence[Prepared]) -> tuple[FileEntry, ...]:
    """Files of rejects in the order of the source, however it was cut into partitions."""
    files = [part.rejects for part in prepared if part.rejects is not None]
    ends = np.cumsum([0, *(sum(part.reject_counts.values()) for part in prepared if part.rejects is not None)]).tolist()
    chunks = []
    for number, first in enumerate(range(0, ends[-1], REJECTS_A_FILE)):
        stop = min(first + REJECTS_A_FILE, ends[-1])
        low = int(np.searchsorted(ends, first, side="right")) - 1
        high = int(np.searchsorted(ends, stop, side="left"))
        chunks.append((RejectChunk(number, tuple(files[low:high]), first - ends[low], stop - ends[low]),))
    return tuple(sorted(fan_out(write_rejects, context.work, chunks), key=lambda entry: entry.key))


def _check_share(context: IngestContext, rows: int, counts: Counter[str]) -> None:
    """Dropping all but the first of equal images is no fault of the source, so it does not count."""
    dropped = counts[DROPPED] if context.config.duplicates == "keep-first" else 0
    rejected = counts.total()
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(TOP_REASONS))
    listed = f"they are listed in {context.work.dataset.location('rejects/')}"
    if rejected == rows and context.parent is None:
        context.work.refuse()
        raise DataError(f"none of the {rows:,} images of {context.source.name} can be used ({reasons}); {listed}")
    if rejected - dropped > context.config.max_reject_share * rows:
        context.work.refuse()
        raise DataError(
            f"{rejected - dropped:,} of {rows:,} images of {context.source.name} were rejected ({reasons}), more than "
            f"ingest.max_reject_share = {context.config.max_reject_share}; {listed}"
        )


def _settle(context: IngestContext) -> list[Settled]:
    """What stays in every slot, in order."""
    slots, rows = context.work.plan.slots, sum(run.rows for run in context.runs)
    record_bytes = record_type(context.config.channels).itemsize + TEXT_BYTES
    size = max(1, SETTLE_BYTES * slots.count // max(1, rows * record_bytes))
    calls = [(part,) for split in ("train", "heldout") for part in slots.ranges(split, size)]
    return sorted(fan_out(settle, context, calls), key=lambda part: part.first)


def _classes(context: IngestContext, labels: set[str]) -> tuple[str, ...] | None:
    """The parent's classes keep their numbers; new ones follow."""
    known = () if context.parent is None else context.parent.classes or ()
    named = context.source.classes
    if named is None:
        named = class_names(labels | set(known)) or ()
    following = dict.fromkeys((*known, *named, *sorted(labels)))
    return tuple(following) or None


def _write(context: IngestContext, settled: Sequence[Settled]) -> tuple[ShardEntry, ...]:
    """All shards, training ones first, in order of sample id."""
    groups = list(_groups(context, settled))
    progress = Progress("writing", sum(group.stop - group.first for group in groups), "images")
    shards: list[ShardEntry] = []
    for entries in fan_out(write, context, ((group,) for group in groups)):
        shards += entries
        progress.update(sum(shard.rows for shard in shards))
    progress.close()
    return tuple(sorted(shards, key=lambda shard: shard.first_id))


def _groups(context: IngestContext, settled: Sequence[Settled]) -> Iterator[Group]:
    in_slots = np.concatenate([np.array(part.kept, np.int64) for part in settled])
    shards = -(-int(in_slots.sum()) // context.shard_rows)
    stored = sum(run.bytes for run in context.runs)
    a_shard = max(1, stored // max(shards, 1))
    together = max(1, min(GROUP_BYTES // a_shard, -(-shards // MIN_GROUPS)))
    return output_groups(in_slots, context.work.plan.slots, context.shard_rows, together)


def _manifest(
    context: IngestContext,
    rows: int,
    counts: Counter[str],
    made: tuple[tuple[ShardEntry, ...], tuple[FileEntry, ...], Sequence[Settled]],
) -> DatasetManifest:
    shards, rejects, settled = made
    plan, config, before = context.work.plan, context.config, context.parent
    if before is not None:
        rows, counts = rows + before.source_rows, counts + Counter(before.reject_counts)
        shards, rejects = before.shards + shards, before.rejects + rejects
    sums = [before.channel_sums] if before is not None else []
    total = np.array([*sums, *(part.sums for part in settled)], dtype=object).sum(0).tolist()
    mean, std = channel_statistics(total, sum(shard.rows for shard in shards) * config.image_size**2)
    return DatasetManifest(
        source=plan.source,
        source_rows=rows,
        image_size=config.image_size,
        channels=config.channels,
        classes=context.classes,
        shards=shards,
        rejects=rejects,
        reject_counts=dict(sorted(counts.items())),
        channel_mean=mean,
        channel_std=std,
        channel_sums=tuple(total),
        ingest=plan.settings,
        generation=plan.generation,
        parent=plan.parent,
        snapshot=plan.snapshot,
        snapshots=(() if before is None else before.snapshots) + plan.snapshot_parts,
        removed_files=plan.removed_files,
    )
