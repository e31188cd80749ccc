"""One generation of a dataset, from its plan to its commit: what the driver of an ingest does between tasks.

The driver holds a marker a partition and a count a slot, never a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipeline.config import IngestConfig
from pipeline.errors import DataError, NotFound, VerificationFailed
from pipeline.manifests import DatasetManifest, FileEntry, ShardEntry, channel_statistics
from pipeline.placement import Group, output_groups, rows_a_shard
from pipeline.progress import Progress
from pipeline.stages.fan_out import fan_out
from pipeline.stages.placing import RejectChunk, settle, write, write_rejects
from pipeline.stages.preparing import Job, partition_name, prepare
from pipeline.storage.ingests import Prepared, Settled, Work
from pipeline.storage.runs import record_type
from pipeline.storage.shards import read_generation, write_dataset
from pipeline.storage.snapshots import read_snapshot
from pipeline.storage.sources.source import Source, class_names

__all__ = ["make_generation"]

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


def make_generation(
    config: IngestConfig, source: Source, work: Work, parent: DatasetManifest | None
) -> DatasetManifest:
    """Raises DataError when too little can be used. Safe beside other drivers of the same plan."""
    try:
        return _made(Job(config, work, source, parent))
    except (NotFound, VerificationFailed):
        # Another driver of this plan may have committed it and removed what we were reading.
        done = read_generation(work.dataset, work.plan.generation)
        if done is None:
            raise
        return done


def _made(job: Job) -> DatasetManifest:
    prepared = _prepare(job)
    rejects = _write_rejects(job, prepared)
    counts = Counter[str]()
    for part in prepared:
        counts.update(part.reject_counts)
    rows = sum(part.rows for part in prepared)
    _check_share(job, rows, counts)
    job = replace(job, runs=tuple(run for part in prepared for run in part.runs))
    settled = _settle(job)
    counts.update({DROPPED: sum(part.duplicates for part in settled)})
    _check_share(job, rows, counts)
    job = replace(
        job,
        classes=_classes(job, {label for part in prepared for label in part.labels}),
        shard_rows=rows_a_shard(
            sum(run.rows for run in job.runs),
            sum(part.image_bytes for part in prepared),
            job.config.shard_rows,
            job.config.shard_bytes,
        ),
    )
    shards = _write(job, settled)
    rejects += tuple(part.rejects for part in settled if part.rejects is not None)
    manifest = _manifest(job, rows, +counts, (shards, rejects, settled))
    write_dataset(job.work.dataset, manifest)
    return manifest


def _prepare(job: Job) -> list[Prepared]:
    """The markers of all partitions, in the order of the source."""
    plan, done = job.work.plan, job.work.done("prepared")
    with ThreadPoolExecutor(MARKER_READERS) as pool:
        found = pool.map(lambda name: job.work.read(Prepared, "prepared", name), sorted(done))
        markers = [marker for marker in found if marker is not None]
    partitions = enumerate(read_snapshot(job.work.dataset, plan.snapshot_parts))
    missing = ((number, part) for number, part in partitions if partition_name(number) not in done)
    progress = Progress("reading", plan.partitions, "partitions", start=len(markers))
    rows = sum(marker.rows for marker in markers)
    for marker in fan_out(prepare, job, missing):
        markers.append(marker)
        rows += marker.rows
        progress.update(len(markers), f"{rows:,} images")
    return sorted(markers, key=lambda marker: marker.partition)


def _write_rejects(job: Job, prepared: Sequence[Prepared]) -> tuple[FileEntry, ...]:
    """Files of rejects in the order of the source, however it was cut into partitions."""
    files = [part.rejects for part in prepared if part.rejects is not None]
    ends = np.cumsum([0, *(sum(part.reject_counts.values()) for part in prepared if part.rejects is not None)]).tolist()
    chunks = []
    for number, first in enumerate(range(0, ends[-1], REJECTS_A_FILE)):
        stop = min(first + REJECTS_A_FILE, ends[-1])
        low = int(np.searchsorted(ends, first, side="right")) - 1
        high = int(np.searchsorted(ends, stop, side="left"))
        chunks.append((RejectChunk(number, tuple(files[low:high]), first - ends[low], stop - ends[low]),))
    return tuple(sorted(fan_out(write_rejects, job.work, chunks), key=lambda entry: entry.key))


def _check_share(job: Job, rows: int, counts: Counter[str]) -> None:
    """Dropping all but the first of equal images is no fault of the source, so it does not count."""
    dropped = counts[DROPPED] if job.config.duplicates == "keep-first" else 0
    rejected = counts.total()
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(TOP_REASONS))
    listed = f"they are listed in {job.work.dataset.location('rejects/')}"
    if rejected == rows and job.parent is None:
        job.work.refuse()
        raise DataError(f"none of the {rows:,} images of {job.source.name} can be used ({reasons}); {listed}")
    if rejected - dropped > job.config.max_reject_share * rows:
        job.work.refuse()
        raise DataError(
            f"{rejected - dropped:,} of {rows:,} images of {job.source.name} were rejected ({reasons}), more than "
            f"ingest.max_reject_share = {job.config.max_reject_share}; {listed}"
        )


def _settle(job: Job) -> list[Settled]:
    """What stays in every slot, in order."""
    slots, rows = job.work.plan.slots, sum(run.rows for run in job.runs)
    record_bytes = record_type(job.config.channels).itemsize + TEXT_BYTES
    size = max(1, SETTLE_BYTES * slots.count // max(1, rows * record_bytes))
    calls = [(part,) for split in ("train", "heldout") for part in slots.ranges(split, size)]
    return sorted(fan_out(settle, job, calls), key=lambda part: part.first)


def _classes(job: Job, labels: set[str]) -> tuple[str, ...] | None:
    """The parent's classes keep their numbers; new ones follow."""
    known = () if job.parent is None else job.parent.classes or ()
    named = job.source.classes
    if named is None:
        named = class_names(labels | set(known)) or ()
    following = dict.fromkeys((*known, *named, *sorted(labels)))
    return tuple(following) or None


def _write(job: Job, settled: Sequence[Settled]) -> tuple[ShardEntry, ...]:
    """All shards, training ones first, in order of sample id."""
    groups = list(_groups(job, settled))
    progress = Progress("writing", sum(group.stop - group.first for group in groups), "images")
    shards: list[ShardEntry] = []
    for entries in fan_out(write, job, ((group,) for group in groups)):
        shards += entries
        progress.update(sum(shard.rows for shard in shards))
    progress.close()
    return tuple(sorted(shards, key=lambda shard: shard.first_id))


def _groups(job: Job, settled: Sequence[Settled]) -> Iterator[Group]:
    in_slots = np.concatenate([np.array(part.kept, np.int64) for part in settled])
    shards = -(-int(in_slots.sum()) // job.shard_rows)
    stored = sum(run.bytes for run in job.runs)
    a_shard = max(1, stored // max(shards, 1))
    together = max(1, min(GROUP_BYTES // a_shard, -(-shards // MIN_GROUPS)))
    return output_groups(in_slots, job.work.plan.slots, job.shard_rows, together)


def _manifest(
    job: Job,
    rows: int,
    counts: Counter[str],
    made: tuple[tuple[ShardEntry, ...], tuple[FileEntry, ...], Sequence[Settled]],
) -> DatasetManifest:
    shards, rejects, settled = made
    plan, config, before = job.work.plan, job.config, job.parent
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
        classes=job.classes,
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
