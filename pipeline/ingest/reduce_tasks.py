"""Second pass of an ingest: tasks that drop duplicates, then tasks that write shards and files of rejects.

A task reads its slots from every sorted run of the first pass. Tasks end with a marker, so repeating one is cheap.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.journal import DeduplicatedSlots, WorkFolder
from pipeline.ingest.manifest import DatasetManifest, ShardEntry, Split
from pipeline.ingest.map_tasks import MAX_DETAIL
from pipeline.ingest.partitioning import BoolArray, Int64Array, ShardGroup, keep_mask, shuffle_order
from pipeline.ingest.sorted_runs import Records, RunFormat, SlotContents, SortedRunFile, read_slots
from pipeline.schema import DATASET, IMAGE, REJECTS
from pipeline.storage.files import parquet_bytes, put_hashed, read_parquet

ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class ReduceContext:
    """Inputs that all tasks of the second pass share. parent: manifest of the previous dataset version."""

    config: IngestConfig
    work: WorkFolder
    parent: DatasetManifest | None
    runs: tuple[SortedRunFile, ...]


@dataclass(frozen=True)
class WriteContext(ReduceContext):
    """What writing shards needs besides. classes: names in the order of their numbers."""

    classes: tuple[str, ...] | None
    shard_rows: int

    @property
    def first_id(self) -> int:
        """Number of sample ids that earlier versions of the dataset use."""
        return 0 if self.parent is None else sum(shard.rows for shard in self.parent.shards)


class Deduplication(NamedTuple):
    """Images of some slots, the indices that bring them into shuffle order, and which of them, so ordered, stay."""

    found: SlotContents
    order: Int64Array
    keep: BoolArray

    @property
    def kept(self) -> Int64Array:
        """Indices into `found` of the images that stay, in shuffle order."""
        return self.order[self.keep]


def deduplicate(context: ReduceContext, slots: range) -> DeduplicatedSlots:
    """Count the images that stay in some slots of one split, and write the others as rejects."""
    name = f"{slots.start:05d}-{slots.stop:05d}"
    done = context.work.read(DeduplicatedSlots, "settled", name)
    if done is not None:
        return done
    images = _read_deduplicated(context, slots, images=False)
    kept = images.found.records[images.kept]
    dropped = _duplicate_rejects(images)
    rejects = None
    if dropped:
        table = pa.Table.from_pylist(dropped, schema=REJECTS)
        stem = f"rejects/{context.work.plan.generation:06d}-duplicates-{slots.start:05d}"
        rejects = put_hashed(context.work.dataset, stem, parquet_bytes(table, 1000))
    marker = DeduplicatedSlots(
        first=slots.start,
        kept=tuple(_count_by_slot(context, slots, kept["key"])),
        sums=tuple(kept["sums"].sum(0, dtype=np.int64).tolist()),
        duplicates=len(dropped),
        rejects=rejects,
    )
    return context.work.mark(marker, "settled", name)


def _read_deduplicated(context: ReduceContext, slots: range, *, images: bool) -> Deduplication:
    work, policy = context.work, context.config.duplicates
    layout = RunFormat(work.plan.slots.count, context.config.channels)
    found = read_slots(work.dataset, context.runs, slots, layout, images=images)
    order = shuffle_order(found.records)
    records = found.records[order]
    known = set() if policy == "keep-all" else _known_digests(context, slots, records)
    return Deduplication(found, order, keep_mask(records, known, policy))


def _known_digests(context: ReduceContext, slots: range, records: Records) -> set[bytes]:
    """sha256 digests of these records that earlier versions of the dataset hold.

    Where the source names its splits, equal images may lie in both: then a training image that is held out counts too.
    """
    plan = context.work.plan
    if not len(records) or (context.parent is None and not plan.named_splits):
        return set()
    ours = {digest.tobytes() for digest in np.ascontiguousarray(records["sha256"])}
    split: Split = "train" if slots.start < plan.train_slots else "heldout"
    known = _heldout_digests(context, slots) if plan.named_splits and split == "train" and plan.heldout_slots else set()
    known &= ours
    low, high = (f"{key:016x}" for key in plan.slots.keys(slots))
    shards = context.parent.shards if context.parent is not None else ()
    for shard in shards:
        if (shard.split == split or plan.named_splits) and (
            shard.keys is None or (shard.keys[0] <= high and shard.keys[1] >= low)
        ):
            theirs = read_parquet(context.work.dataset, shard, ["sha256"])["sha256"].to_pylist()
            known |= ours.intersection(map(bytes.fromhex, theirs))
    return known


def _heldout_digests(context: ReduceContext, slots: range) -> set[bytes]:
    """sha256 digests of the new held-out images whose keys lie in these training slots."""
    plan = context.work.plan
    low, high = plan.slots.keys(slots)
    first, last = (plan.train_slots + (key * plan.heldout_slots >> 64) for key in (low, high))
    layout = RunFormat(plan.slots.count, context.config.channels)
    found = read_slots(context.work.dataset, context.runs, range(first, last + 1), layout, images=False)
    return {digest.tobytes() for digest in np.ascontiguousarray(found.records["sha256"])}


def _duplicate_rejects(images: Deduplication) -> list[dict[str, str]]:
    """Rows of REJECTS, sorted by source name: the images that do not stay."""
    found, order, keep = images
    digests = np.ascontiguousarray(found.records["sha256"][order])
    first = {digests[index].tobytes(): order[index] for index in np.flatnonzero(keep)}
    rejects = []
    for index in np.flatnonzero(~keep):
        same = first.get(digests[index].tobytes())
        detail = "pixels of another image" if same is None else f"pixels of {found.sources[same]}"[:MAX_DETAIL]
        rejects.append({"source": found.sources[order[index]], "reason": "duplicate", "detail": detail})
    return sorted(rejects, key=lambda row: (row["source"], row["detail"]))


def _count_by_slot(context: ReduceContext, slots: range, keys: npt.NDArray[np.uint64]) -> list[int]:
    """How many of the ascending keys fall into each slot."""
    starts = [context.work.plan.slots.keys(range(slot, slot + 1))[0] for slot in slots]
    edges = np.searchsorted(keys, np.array(starts[1:], np.uint64), side="left")
    return [int(count) for count in np.diff([0, *edges.tolist(), len(keys)])]


def shard_name(split: str, shard: int) -> str:
    """Name of a shard's marker."""
    return f"{split}-{shard:06d}"


def write_shards(context: WriteContext, group: ShardGroup) -> list[ShardEntry]:
    """The shards of a group. Only shards without a marker are written."""
    shards = range(group.shard, group.shard + -(-(group.stop - group.first) // context.shard_rows))
    done = [context.work.read(ShardEntry, "written", shard_name(group.split, shard)) for shard in shards]
    missing = [shard for shard, entry in zip(shards, done, strict=True) if entry is None]
    entries = [entry for entry in done if entry is not None]
    if missing:
        images = _read_deduplicated(context, group.slots, images=True)
        rows = images.kept[group.skip : group.skip + group.stop - group.first]
        entries += [_write_shard(context, group, shard, images.found, rows) for shard in missing]
    return entries


def _write_shard(
    context: WriteContext, group: ShardGroup, shard: int, found: SlotContents, rows: Int64Array
) -> ShardEntry:
    """rows: indices into `found` of all images of the group, in shuffle order."""
    start = (shard - group.shard) * context.shard_rows
    rows = rows[start : start + context.shard_rows]
    first_id = context.first_id + group.before + group.first + start
    table, largest = _shard_table(context, found, rows, first_id)
    row_group_rows = max(1, min(context.config.row_group_rows, ROW_GROUP_BYTES // largest))
    stem = f"data/{group.split}-{context.work.plan.generation:06d}-{shard:06d}"
    file = put_hashed(context.work.dataset, stem, parquet_bytes(table, row_group_rows))
    keys = found.records["key"][rows]
    entry = ShardEntry(
        **file.model_dump(),
        split=group.split,
        rows=len(rows),
        first_id=first_id,
        keys=(f"{keys[0]:016x}", f"{keys[-1]:016x}"),
    )
    return context.work.mark(entry, "written", shard_name(group.split, shard))


def _shard_table(context: WriteContext, found: SlotContents, rows: Int64Array, first_id: int) -> tuple[pa.Table, int]:
    """Rows of DATASET, and the size of the largest image in bytes."""
    numbers = {name: number for number, name in enumerate(context.classes or ())}
    images = [{"bytes": found.images[row], "path": found.sources[row]} for row in rows]
    labels = [None if (label := found.labels[row]) is None else numbers[label] for row in rows]
    size = pa.array(np.full(len(rows), context.config.image_size, np.int32))
    columns = [
        pa.array(np.arange(first_id, first_id + len(rows), dtype=np.int64)),
        pa.array(images, IMAGE),
        pa.array(labels, pa.int32()),
        size,
        size,
        pa.array([found.records["sha256"][row].tobytes().hex() for row in rows]),
    ]
    return pa.table(columns, schema=DATASET), max(len(image["bytes"]) for image in images)


class RejectChunk(NamedTuple):
    """One file of rejects: `rows` rejects of the concatenated `files`, behind the first `skip`."""

    number: int
    files: tuple[FileEntry, ...]
    skip: int
    rows: int


def write_rejects(work: WorkFolder, chunk: RejectChunk) -> FileEntry:
    """Write a file of rejects in source order."""
    tables = [pq.read_table(pa.BufferReader(work.dataset.read(file.key))) for file in chunk.files]
    table = pa.concat_tables(tables).slice(chunk.skip, chunk.rows)
    return put_hashed(
        work.dataset, f"rejects/{work.plan.generation:06d}-{chunk.number:06d}", parquet_bytes(table, 1000)
    )
