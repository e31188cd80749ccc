"""`ddpm verify` of a dataset: image numbering, split and order by content, pixel hashes, rejects and counts, versions.

Every image must have one sample id, lie in the split and position that its pixels determine, and decode to the pixels
that were hashed. Rejects and counts must add up. A dataset version must only append to the one before it.
"""

import hashlib
from collections import Counter
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

FIXED = ("source", "image_size", "channels")
APPENDED = ("shards", "rejects", "snapshots", "classes")
DIGEST_BYTES = 16
"""Bytes of each image's sha256 that are held in memory to find equal images in different dataset versions."""


def verify_dataset(store: Store, decode: Decode, found: Findings) -> None:
    """Checks everything and decodes every image.

    Counts images, rejects, shards, versions (as "generations") and the files in data/ that no manifest names.
    """
    with found.record_errors():
        manifest = read_dataset(store)
        versions = _check_versions(store, manifest, found)
        _check_counts(store, manifest, found)
        shards, before = ShardVerifier(store, manifest, decode, found), 0
        for version in versions:
            for shard in version.shards[before:]:
                shards.check(shard, version.generation)
            before = len(version.shards)
        shards.check_totals()
        _check_rejects(store, manifest, found)
        named = {shard.key for shard in manifest.shards}
        found.counts["unnamed"] = sum(entry.key not in named for entry in store.list("data/"))


def _check_versions(store: Store, newest: DatasetManifest, found: Findings) -> list[DatasetManifest]:
    """Every dataset version, oldest first; each must append to the one before it."""
    found.counts["generations"] = newest.generation
    versions: list[DatasetManifest] = []
    for number in range(1, newest.generation + 1):
        where = store.location(dataset_version_key(number))
        manifest = found.attempt(lambda number=number: read_dataset_version(store, number))  # type: ignore[misc]
        if manifest is None and number == newest.generation == 1 and newest.snapshot is None:
            return [newest]  # written before each version had a manifest file of its own
        if manifest is None:
            found.add(f"{where} is missing or damaged: dataset version {number} of {newest.generation}")
            continue
        found.expect(manifest.generation == number, f"{where} holds dataset version {manifest.generation}")
        if versions:
            _check_appended(where, versions[-1], manifest, found)
        else:
            found.expect(number > 1 or manifest.parent is None, f"{where} has a parent, but is the first version")
        _check_snapshot(store, manifest, len(versions[-1].snapshots) if versions else 0, found)
        versions.append(manifest)
    complete = bool(versions) and versions[-1] == newest
    found.expect(complete, f"{store.uri}: manifest.json is not its newest version")
    return versions if complete else [newest]


def _check_appended(where: str, before: DatasetManifest, after: DatasetManifest, found: Findings) -> None:
    found.expect(after.parent == before.digest(), f"{where} names another parent than the version before it")
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
            digest == manifest.snapshot,
            f"{store.uri}: the files listed for dataset version {manifest.generation} do not have its snapshot digest",
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


@dataclass
class ShardVerifier:
    """Checks shards in the order of the manifest, and totals over all of them."""

    store: Store
    manifest: DatasetManifest
    decode: Decode
    found: Findings
    version: int = 0  # dataset version and split of the last shard
    split: str = ""
    last_key: str = ""  # shuffle key and pixel hash of the last row in this version and split
    last_sha256: str = ""
    channel_sums: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def check(self, shard: ShardEntry, version: int) -> None:
        where, found = self.store.location(shard.key), self.found
        found.counts["shards"] += 1
        if (self.version, self.split) != (version, shard.split):
            late = (self.version, self.split) == (version, "heldout")
            found.expect(not late, f"{self.store.uri}: a held-out shard comes before the training shard {shard.key}")
            self.version, self.split, self.last_key, self.last_sha256 = version, shard.split, "", ""
        table = found.table(self.store, shard, DATASET)
        if table is None:
            return
        ids = list(range(shard.first_id, shard.first_id + shard.rows))
        found.expect(
            table["sample_id"].to_pylist() == ids,
            f"{where} does not hold samples {shard.first_id}..{shard.first_id + shard.rows - 1} in order, once each",
        )
        keys = [self._check_order(where, row) for row in table.select(["sample_id", "sha256"]).to_pylist()]
        if shard.keys is not None:
            ends = (keys[0], keys[-1])
            found.expect(shard.keys == ends, f"{where} has other first and last keys than the manifest names")
        for batch in table.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                self._check_image(f"sample {row['sample_id']} in {where}", shard, row)
        found.counts["images"] += table.num_rows

    def _check_order(self, where: str, row: dict[str, Any]) -> str:
        """Returns the row's shuffle key, which must follow the row before; duplicates only where they were kept."""
        found, manifest, sha256 = self.found, self.manifest, str(row["sha256"])
        if manifest.snapshot is None:  # an older program, which sorted by content and name
            return ""
        key = f"{shuffle_key(sha256, manifest.ingest['seed']):016x}"
        found.expect(key >= self.last_key, f"sample {row['sample_id']} in {where} is not where its content belongs")
        if manifest.ingest["duplicates"] != "keep-all":
            repeats = sha256 == self.last_sha256
            found.expect(not repeats, f"sample {row['sample_id']} in {where} repeats the one before it")
            if manifest.generation > 1:
                self.digests.append(bytes.fromhex(sha256)[:DIGEST_BYTES])
        self.last_key, self.last_sha256 = key, sha256
        return key

    def _check_image(self, where: str, shard: ShardEntry, row: dict[str, Any]) -> None:
        found, manifest, label = self.found, self.manifest, row["label"]
        found.expect(
            (row["width"], row["height"]) == (manifest.image_size,) * 2,
            f"{where} has columns for {row['width']}x{row['height']} pixels",
        )
        if label is not None:
            classes = len(manifest.classes or ())
            found.expect(0 <= label < classes, f"{where} has label {label}, but the dataset has {classes} classes")
        pixels = found.pixels(where, row["image"]["bytes"], manifest.shape, self.decode)
        if pixels is None:
            return
        levels = pixels.reshape(-1, manifest.channels).astype(np.int64)
        sums = [*levels.sum(0).tolist(), *(levels**2).sum(0).tolist()]
        self.channel_sums = [a + b for a, b in zip(self.channel_sums or [0] * len(sums), sums, strict=True)]
        sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        if sha256 != row["sha256"]:
            found.add(f"{where} has pixels with another sha256 than its row names")
            return
        split = "heldout" if is_heldout(sha256, manifest.ingest["heldout_share"]) else "train"
        named = any(role == "heldout" for _, role in manifest.splits)  # the split is that of the source
        found.expect(named or split == shard.split, f"{where} belongs in the {split} split by its content")

    def check_totals(self) -> None:
        """Duplicates across dataset versions, and the channel statistics."""
        found, manifest, uri = self.found, self.manifest, self.store.uri
        repeated = len(self.digests) - len(set(self.digests))
        found.expect(not repeated, f"{uri}: {repeated} images have the pixels of an image of another version")
        if not manifest.channel_sums:
            return
        found.expect(
            list(manifest.channel_sums) == self.channel_sums,
            f"{uri}: channel_sums are {list(manifest.channel_sums)}, those of the images are {self.channel_sums}",
        )
        pixels = sum(shard.rows for shard in manifest.shards) * manifest.image_size**2
        found.expect(
            (manifest.channel_mean, manifest.channel_std) == channel_statistics(manifest.channel_sums, pixels),
            f"{uri}: channel_mean and channel_std do not follow from channel_sums",
        )


def _check_rejects(store: Store, manifest: DatasetManifest, found: Findings) -> None:
    reasons = Counter[str]()
    for entry in manifest.rejects:
        table = found.table(store, entry, REJECTS)
        reasons.update([] if table is None else table["reason"].to_pylist())
    found.expect(
        dict(reasons) == dict(manifest.reject_counts),
        f"{store.uri} counts rejects {manifest.reject_counts}, lists {dict(reasons)}",
    )
    found.counts["rejects"] = reasons.total()
