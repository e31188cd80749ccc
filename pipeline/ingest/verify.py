"""A dataset: shards that number every image once, in the split and at the place its content chose, with the pixels that
were hashed; rejects and counts that add up; generations that only append to one another."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.ingest.dataset import dataset_version_key, read_dataset, read_dataset_version
from pipeline.ingest.manifest import DatasetManifest, ShardEntry, channel_statistics
from pipeline.ingest.partitioning import is_heldout, shuffle_key
from pipeline.ingest.source_listing import read_snapshot, snapshot_digest
from pipeline.schema import DATASET, REJECTS
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.store import Store

__all__ = ["verify_dataset"]

FIXED = ("source", "image_size", "channels")
APPENDED = ("shards", "rejects", "snapshots", "classes")
DIGEST_BYTES = 16
"""Of each image's sha256, held to find equal images of different generations."""


@dataclass
class Seen:
    """What the shards so far held. last_key: of the generation and split whose shards are being read."""

    channels: int
    sums: list[int] = field(default_factory=list)
    last_key: str = ""
    last_sha256: str = ""
    part: tuple[int, str] = (0, "")
    digests: list[bytes] = field(default_factory=list)

    def add(self, pixels: Any) -> None:
        levels = pixels.reshape(-1, self.channels).astype(np.int64)
        more = [*levels.sum(0).tolist(), *(levels**2).sum(0).tolist()]
        self.sums = [a + b for a, b in zip(self.sums or [0] * len(more), more, strict=True)]


def verify_dataset(store: Store, decode: Decode, found: Findings) -> None:
    """Counts images, rejects, shards, generations and files in data/ that no manifest names. Decodes every image."""
    with found.noting():
        manifest = read_dataset(store)
        chain = _chain(store, manifest, found)
        _check_counts(store, manifest, found)
        seen, before = Seen(manifest.channels), 0
        for generation in chain:
            for shard in generation.shards[before:]:
                _check_shard(store, (manifest, shard, generation.generation), decode, (found, seen))
            before = len(generation.shards)
        _check_statistics(store, manifest, seen, found)
        _check_rejects(store, manifest, found)
        named = {shard.key for shard in manifest.shards}
        found.counts["unnamed"] = sum(entry.key not in named for entry in store.list("data/"))


def _chain(store: Store, newest: DatasetManifest, found: Findings) -> list[DatasetManifest]:
    """Every generation, oldest first; each must append to the one before it."""
    found.counts["generations"] = newest.generation
    chain: list[DatasetManifest] = []
    for number in range(1, newest.generation + 1):
        where = store.location(dataset_version_key(number))
        manifest = found.attempt(lambda number=number: read_dataset_version(store, number))  # type: ignore[misc]
        if manifest is None and number == newest.generation == 1 and newest.snapshot is None:
            return [newest]  # made before generations had files of their own
        if manifest is None:
            found.add(f"{where} is missing or damaged: generation {number} of {newest.generation}")
            continue
        found.expect(manifest.generation == number, f"{where} says that it is generation {manifest.generation}")
        if chain:
            _check_appended(where, chain[-1], manifest, found)
        else:
            found.expect(number > 1 or manifest.parent is None, f"{where} has a parent, but is the first")
        _check_snapshot(store, manifest, len(chain[-1].snapshots) if chain else 0, found)
        chain.append(manifest)
    found.expect(bool(chain) and chain[-1] == newest, f"{store.uri}: manifest.json is not its newest generation")
    return chain if chain and chain[-1] == newest else [newest]


def _check_appended(where: str, before: DatasetManifest, after: DatasetManifest, found: Findings) -> None:
    found.expect(after.parent == before.digest(), f"{where} names another parent than the generation before it")
    for name in FIXED:
        found.expect(getattr(after, name) == getattr(before, name), f"{where} has another {name} than its parent")
    for name in APPENDED:
        older, newer = getattr(before, name) or (), getattr(after, name) or ()
        found.expect(newer[: len(older)] == older, f"{where} does not only append to the {name} of its parent")


def _check_snapshot(store: Store, manifest: DatasetManifest, before: int, found: Findings) -> None:
    parts = manifest.snapshots[before:]
    found.counts["files"] += len(parts)
    digest = found.attempt(lambda: snapshot_digest(read_snapshot(store, parts)))
    if digest is not None and manifest.snapshot is not None:
        found.expect(
            digest == manifest.snapshot, f"{store.uri}: the files listed for generation {manifest.generation} differ"
        )


def _check_counts(store: Store, manifest: DatasetManifest, found: Findings) -> None:
    rows, rejects = sum(s.rows for s in manifest.shards), sum(manifest.reject_counts.values())
    found.expect(
        manifest.source_rows == rows + rejects,
        f"{store.uri}: {manifest.source_rows} source images are not {rows} images and {rejects} rejects",
    )
    following = 0
    for shard in manifest.shards:
        found.expect(
            shard.first_id == following,
            f"{store.location(shard.key)} begins at sample {shard.first_id}, the shard before it ends at {following}",
        )
        following = shard.first_id + shard.rows
    keys = [entry.key for entry in (*manifest.shards, *manifest.rejects)]
    found.expect(len(keys) == len(set(keys)), f"{store.uri}: two entries of the manifest name one file")


def _check_shard(
    store: Store, of: tuple[DatasetManifest, ShardEntry, int], decode: Decode, notes: tuple[Findings, Seen]
) -> None:
    (manifest, shard, generation), (found, seen) = of, notes
    where = store.location(shard.key)
    found.counts["shards"] += 1
    if seen.part != (generation, shard.split):
        late = seen.part == (generation, "heldout")
        found.expect(not late, f"{store.uri}: a held-out shard comes before the training shard {shard.key}")
        seen.part, seen.last_key, seen.last_sha256 = (generation, shard.split), "", ""
    table = found.table(store, shard, DATASET)
    if table is None:
        return
    ids = list(range(shard.first_id, shard.first_id + shard.rows))
    found.expect(
        table["sample_id"].to_pylist() == ids,
        f"{where} does not hold samples {shard.first_id}..{shard.first_id + shard.rows - 1} in order, once each",
    )
    keys = [_check_place(where, manifest, row, notes) for row in table.select(["sample_id", "sha256"]).to_pylist()]
    if shard.keys is not None:
        found.expect(shard.keys == (keys[0], keys[-1]), f"{where} has other first and last keys than the manifest says")
    for batch in table.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            _check_row(f"sample {row['sample_id']} in {where}", (manifest, shard), row, decode, notes)
    found.counts["images"] += table.num_rows


def _check_place(where: str, manifest: DatasetManifest, row: dict[str, Any], notes: tuple[Findings, Seen]) -> str:
    """The row's key; it must follow the row before, and not repeat its pixels unless duplicates were kept."""
    found, seen = notes
    sha256 = str(row["sha256"])
    if manifest.snapshot is None:  # an older order, by content and name
        return ""
    key = f"{shuffle_key(sha256, manifest.ingest['seed']):016x}"
    found.expect(key >= seen.last_key, f"sample {row['sample_id']} in {where} is not where its content belongs")
    if manifest.ingest["duplicates"] != "keep-all":
        found.expect(sha256 != seen.last_sha256, f"sample {row['sample_id']} in {where} repeats the one before it")
        if manifest.generation > 1:
            seen.digests.append(bytes.fromhex(sha256)[:DIGEST_BYTES])
    seen.last_key, seen.last_sha256 = key, sha256
    return key


def _check_row(
    where: str,
    of: tuple[DatasetManifest, ShardEntry],
    row: dict[str, Any],
    decode: Decode,
    notes: tuple[Findings, Seen],
) -> None:
    (manifest, shard), (found, seen) = of, notes
    size, label = manifest.image_size, row["label"]
    found.expect((row["width"], row["height"]) == (size, size), f"{where} says {row['width']}x{row['height']} pixels")
    if label is not None:
        classes = len(manifest.classes or ())
        found.expect(0 <= label < classes, f"{where} has label {label}, the dataset {classes} classes")
    pixels = found.pixels(where, row["image"]["bytes"], (size, size, manifest.channels), decode)
    if pixels is None:
        return
    seen.add(pixels)
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    if sha256 != row["sha256"]:
        found.add(f"{where} has pixels with another sha256 than its row names")
        return
    split = "heldout" if is_heldout(sha256, manifest.ingest["heldout_share"]) else "train"
    found.expect(split == shard.split, f"{where} belongs into the {split} split by its content")


def _check_statistics(store: Store, manifest: DatasetManifest, seen: Seen, found: Findings) -> None:
    repeated = len(seen.digests) - len(set(seen.digests))
    found.expect(not repeated, f"{store.uri}: {repeated} images have the pixels of an image of another generation")
    if not manifest.channel_sums:
        return
    found.expect(
        list(manifest.channel_sums) == seen.sums,
        f"{store.uri}: channel_sums are {list(manifest.channel_sums)}, those of the images are {seen.sums}",
    )
    pixels = sum(shard.rows for shard in manifest.shards) * manifest.image_size**2
    found.expect(
        (manifest.channel_mean, manifest.channel_std) == channel_statistics(manifest.channel_sums, pixels),
        f"{store.uri}: channel_mean and channel_std do not follow from channel_sums",
    )


def _check_rejects(store: Store, manifest: DatasetManifest, found: Findings) -> None:
    reasons: dict[str, int] = {}
    for reason in _reasons(store, manifest, found):
        reasons[reason] = reasons.get(reason, 0) + 1
    found.expect(
        reasons == dict(manifest.reject_counts), f"{store.uri} counts rejects {manifest.reject_counts}, lists {reasons}"
    )
    found.counts["rejects"] = sum(reasons.values())


def _reasons(store: Store, manifest: DatasetManifest, found: Findings) -> Iterator[str]:
    for entry in manifest.rejects:
        table = found.table(store, entry, REJECTS)
        yield from [] if table is None else table["reason"].to_pylist()
