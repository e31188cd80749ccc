"""Second pass of an ingest: which of equal images stay (`settle`), and the shards and rejects themselves (`write`).

A task reads a range of slots from every run of the first pass. Each ends with a marker, so that it is done once.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import FileEntry
from pipeline.ingest.journal import Settled, Work
from pipeline.ingest.manifest import ShardEntry, Split
from pipeline.ingest.map_tasks import MAX_DETAIL, IngestContext
from pipeline.ingest.partitioning import Group, in_order, kept
from pipeline.ingest.sorted_runs import Gathered, gather
from pipeline.schema import DATASET, IMAGE, REJECTS
from pipeline.storage.files import parquet_bytes, put_hashed, read_parquet

__all__ = ["RejectChunk", "settle", "shard_name", "write", "write_rejects"]

ROW_GROUP_BYTES = 32 * 2**20


def settle(context: IngestContext, slots: range) -> Settled:
    """Decide what stays of some slots of one split."""
    name = f"{slots.start:05d}-{slots.stop:05d}"
    done = context.work.read(Settled, "settled", name)
    if done is not None:
        return done
    found = gather(context.work.dataset, context.runs, slots, context.shape, images=False)
    order, stays = _decided(context, slots, found)
    chosen = found.records[order[stays]]
    dropped = _duplicates(context, found, order, stays)
    rejects = None
    if dropped:
        table = pa.Table.from_pylist(dropped, schema=REJECTS)
        stem = f"rejects/{context.work.plan.generation:06d}-duplicates-{slots.start:05d}"
        rejects = put_hashed(context.work.dataset, stem, parquet_bytes(table, 1000))
    settled = Settled(
        first=slots.start,
        kept=tuple(_by_slot(context, slots, chosen["key"])),
        sums=tuple(chosen["sums"].sum(0, dtype=np.int64).tolist()),
        duplicates=len(dropped),
        rejects=rejects,
    )
    return context.work.mark(settled, "settled", name)


def _decided(context: IngestContext, slots: range, found: Gathered) -> tuple[Any, Any]:
    """Order of the gathered records, and which of them, in that order, stay."""
    order = in_order(found.records)
    records = found.records[order]
    known = set() if context.config.duplicates == "keep-all" else _known(context, slots, records)
    return order, kept(records, known, context.config.duplicates)


def _known(context: IngestContext, slots: range, records: Any) -> set[bytes]:
    """Digests of these records that earlier generations have."""
    if context.parent is None or not len(records):
        return set()
    ours = {digest.tobytes() for digest in np.ascontiguousarray(records["sha256"])}
    split: Split = "train" if slots.start < context.work.plan.train_slots else "heldout"
    low, high = (f"{key:016x}" for key in context.work.plan.slots.keys(slots))
    known: set[bytes] = set()
    for shard in context.parent.split(split):
        if shard.keys is None or (shard.keys[0] <= high and shard.keys[1] >= low):
            theirs = read_parquet(context.work.dataset, shard, ["sha256"])["sha256"].to_pylist()
            known |= ours.intersection(map(bytes.fromhex, theirs))
    return known


def _duplicates(context: IngestContext, found: Gathered, order: Any, stays: Any) -> list[dict[str, str]]:
    """Rejects, by name: the images that do not stay."""
    digests = np.ascontiguousarray(found.records["sha256"][order])
    first = {digests[place].tobytes(): order[place] for place in np.flatnonzero(stays)}
    rejects = []
    for place in np.flatnonzero(~stays):
        same = first.get(digests[place].tobytes())
        detail = "pixels of another image" if same is None else f"pixels of {found.sources[same]}"[:MAX_DETAIL]
        rejects.append({"source": found.sources[order[place]], "reason": "duplicate", "detail": detail})
    return sorted(rejects, key=lambda row: (row["source"], row["detail"]))


def _by_slot(context: IngestContext, slots: range, keys: Any) -> list[int]:
    """How many of the ascending keys fall into each slot."""
    starts = [context.work.plan.slots.keys(range(slot, slot + 1))[0] for slot in slots]
    edges = np.searchsorted(keys, np.array(starts[1:], np.uint64), side="left")
    return [int(count) for count in np.diff([0, *edges.tolist(), len(keys)])]


def shard_name(split: str, shard: int) -> str:
    """Name of a shard's marker."""
    return f"{split}-{shard:06d}"


def write(context: IngestContext, group: Group) -> list[ShardEntry]:
    """The shards of a group, in order."""
    shards = range(group.shard, group.shard + -(-(group.stop - group.first) // context.shard_rows))
    done = [context.work.read(ShardEntry, "written", shard_name(group.split, shard)) for shard in shards]
    if None not in done:
        return [entry for entry in done if entry is not None]
    found = gather(context.work.dataset, context.runs, group.slots, context.shape, images=True)
    order, stays = _decided(context, group.slots, found)
    rows = order[stays][group.skip : group.skip + group.stop - group.first]
    written = []
    for number, start in enumerate(range(0, len(rows), context.shard_rows)):
        chosen = rows[start : start + context.shard_rows]
        written.append(_write_shard(context, group, group.shard + number, group.first + start, (found, chosen)))
    return written


def _write_shard(
    context: IngestContext, group: Group, shard: int, first: int, images: tuple[Gathered, Any]
) -> ShardEntry:
    found, rows = images
    plan, name = context.work.plan, shard_name(group.split, shard)
    done = context.work.read(ShardEntry, "written", name)
    if done is not None:
        return done
    first_id = context.first_row + first + group.before
    table, largest = _shard_table(context, found, rows, first_id)
    group_rows = max(1, min(context.config.row_group_rows, ROW_GROUP_BYTES // largest))
    stem = f"data/{group.split}-{plan.generation:06d}-{shard:06d}"
    file = put_hashed(context.work.dataset, stem, parquet_bytes(table, group_rows))
    keys = found.records["key"][rows]
    entry = ShardEntry(
        **file.model_dump(),
        split=group.split,
        rows=len(rows),
        first_id=first_id,
        keys=(f"{keys[0]:016x}", f"{keys[-1]:016x}"),
    )
    return context.work.mark(entry, "written", name)


def _shard_table(context: IngestContext, found: Gathered, rows: Any, first_id: int) -> tuple[pa.Table, int]:
    """DATASET rows, and the bytes of the largest image."""
    assert found.images is not None
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
    """Rejects first..stop-1 of the concatenated `files`."""

    number: int
    files: tuple[FileEntry, ...]
    first: int
    stop: int


def write_rejects(work: Work, chunk: RejectChunk) -> FileEntry:
    """A file of rejects in the order of the source."""
    tables = [pq.read_table(pa.BufferReader(work.dataset.read(file.key))) for file in chunk.files]
    table = pa.concat_tables(tables).slice(chunk.first, chunk.stop - chunk.first)
    return put_hashed(
        work.dataset, f"rejects/{work.plan.generation:06d}-{chunk.number:06d}", parquet_bytes(table, 1000)
    )
