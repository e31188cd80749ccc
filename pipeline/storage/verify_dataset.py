"""A dataset: shards that number every image once, in the split its content chose, with the pixels that were hashed."""

import hashlib
from typing import Any

from pipeline.manifests import DatasetManifest, ShardEntry
from pipeline.planning import is_heldout
from pipeline.schema import DATASET, REJECTS
from pipeline.storage.findings import Decode, Findings
from pipeline.storage.shards import read_dataset
from pipeline.storage.store import Store

__all__ = ["verify_dataset"]


def verify_dataset(store: Store, decode: Decode, found: Findings) -> None:
    """Counts images, rejects and shards."""
    with found.noting():
        manifest = read_dataset(store)
        _check_counts(store, manifest, found)
        for shard in manifest.shards:
            _check_shard(store, manifest, shard, decode, found)
        _check_rejects(store, manifest, found)


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
    order = [shard.split for shard in manifest.shards]
    found.expect(order == sorted(order, reverse=True), f"{store.uri}: a held-out shard comes before a training shard")
    keys = [entry.key for entry in (*manifest.shards, *manifest.rejects)]
    found.expect(len(keys) == len(set(keys)), f"{store.uri}: two entries of the manifest name one file")


def _check_shard(store: Store, manifest: DatasetManifest, shard: ShardEntry, decode: Decode, found: Findings) -> None:
    where = store.location(shard.key)
    found.counts["shards"] += 1
    table = found.table(store, shard, DATASET)
    if table is None:
        return
    ids = list(range(shard.first_id, shard.first_id + shard.rows))
    found.expect(
        table["sample_id"].to_pylist() == ids,
        f"{where} does not hold samples {shard.first_id}..{shard.first_id + shard.rows - 1} in order, once each",
    )
    for row in table.to_pylist():
        _check_row(f"sample {row['sample_id']} in {where}", manifest, shard, row, decode, found)
    found.counts["images"] += table.num_rows


def _check_row(
    where: str, manifest: DatasetManifest, shard: ShardEntry, row: dict[str, Any], decode: Decode, found: Findings
) -> None:
    size, label = manifest.image_size, row["label"]
    found.expect((row["width"], row["height"]) == (size, size), f"{where} says {row['width']}x{row['height']} pixels")
    if label is not None:
        classes = len(manifest.classes or ())
        found.expect(0 <= label < classes, f"{where} has label {label}, the dataset {classes} classes")
    pixels = found.pixels(where, row["image"]["bytes"], (size, size, manifest.channels), decode)
    if pixels is None:
        return
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    if sha256 != row["sha256"]:
        found.add(f"{where} has pixels with another sha256 than its row names")
        return
    split = "heldout" if is_heldout(sha256, manifest.ingest["heldout_share"]) else "train"
    found.expect(split == shard.split, f"{where} belongs into the {split} split by its content")


def _check_rejects(store: Store, manifest: DatasetManifest, found: Findings) -> None:
    reasons: dict[str, int] = {}
    for entry in manifest.rejects:
        table = found.table(store, entry, REJECTS)
        for reason in [] if table is None else table["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    found.expect(
        reasons == dict(manifest.reject_counts), f"{store.uri} counts rejects {manifest.reject_counts}, lists {reasons}"
    )
    found.counts["rejects"] = sum(reasons.values())
