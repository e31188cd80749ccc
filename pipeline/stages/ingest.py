"""Source images -> dataset: a Ray Data job that prepares, shuffles and writes every image exactly once.

Order and split are functions of content: an image's place is the rank of sha256(seed, pixels, path), and it is held
out when the first 64 bits of its pixels' sha256 fall under heldout_share. So neither the number of tasks nor a rerun
changes the dataset, and an image stays on its side of the split when others are added.
"""

import hashlib
import pickle
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.data.expressions import col

from pipeline.config import Config, IngestConfig
from pipeline.engine.images import BadImage, encode_png, prepare
from pipeline.errors import ConfigError, DataError
from pipeline.manifests import DatasetManifest, FileEntry, ShardEntry, Split
from pipeline.planning import is_heldout
from pipeline.schema import DATASET, IMAGE, REJECTS
from pipeline.stages.cluster import cluster
from pipeline.storage.shards import MANIFEST, parquet_bytes, put_file, read_dataset, write_dataset
from pipeline.storage.sources import Partition, RawImage, Source, open_source
from pipeline.storage.store import Store, resolve

__all__ = ["ingest"]

IntArray = npt.NDArray[np.int64]
Counts = dict[str, int]

LOCAL_CPUS = 3
MIN_SHUFFLE_PARTITIONS = 4
SHUFFLE_BYTES = 64 * 2**20
"""About what one task of the shuffle holds at a time."""
UNREADABLE = "unreadable"
INDEX = ["partition", "row", "source", "sha256", "reason", "sums"]

PREPARED = pa.schema(
    [
        pa.field("partition", pa.int64()),
        pa.field("row", pa.int64()),  # inside the partition, rejects included
        pa.field("source", pa.string()),
        pa.field("png", pa.binary()),  # null for a reject
        pa.field("label", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("sums", pa.list_(pa.int64())),  # per channel: sum of levels, then sum of squared levels
    ]
)


def ingest(config: Config, source: str, dataset: str, dry_run: bool = False) -> dict[str, Any]:
    """Make the dataset; an equal one that is there already is left as it is.

    Raises ConfigError when the folder holds another dataset, DataError when nothing usable is left or more than
    ingest.max_reject_share was rejected.
    """
    store = resolve(dataset, config.storage)
    settings = config.ingest.model_dump(mode="json")
    if store.exists(MANIFEST):
        return _already_there(store, source, settings)
    opened = open_source(source, config.ingest.partition_rows, config.storage)
    if dry_run:
        return {"summary": f"would ingest {source} in {len(opened.partitions)} partitions to {store.uri}"}
    with cluster(config.ray, LOCAL_CPUS):
        manifest = _run(config.ingest, opened, store)
    return _result(store, manifest, "ingested")


def _already_there(store: Store, source: str, settings: dict[str, Any]) -> dict[str, Any]:
    manifest = read_dataset(store)
    different = [name for name in settings if manifest.ingest.get(name) != settings[name]]
    if manifest.source != source or different:
        what = ", ".join(["source"] * (manifest.source != source) + different)
        raise ConfigError(f"{store.uri} holds another dataset (different: {what}): choose another --dataset")
    return _result(store, manifest, "already done")


def _result(store: Store, manifest: DatasetManifest, state: str) -> dict[str, Any]:
    train, heldout = manifest.rows("train"), manifest.rows("heldout")
    rejected = sum(manifest.reject_counts.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reject_counts.items())
    return {
        "state": state,
        "uri": store.uri,
        "digest": manifest.digest(),
        "train": train,
        "heldout": heldout,
        "rejects": manifest.reject_counts,
        "classes": None if manifest.classes is None else len(manifest.classes),
        "summary": f"{state}: {train:,} training and {heldout:,} held-out images, "
        + (f"{len(manifest.classes)} classes" if manifest.classes else "no labels")
        + f", {rejected:,} rejected"
        + (f" ({reasons}; listed in {store.location('rejects/')})" if rejected else "")
        + f" -> {store.uri}",
    }


def _run(config: IngestConfig, source: Source, store: Store) -> DatasetManifest:
    prepared = _prepare_all(config, source)
    index = pa.concat_tables(ray.get(prepared.select_columns(INDEX).to_arrow_refs()))
    rejects, counts = _write_rejects(store, prepared, index)
    _check_share(config, source, index, counts)
    manifest = DatasetManifest(
        source=source.name,
        source_rows=index.num_rows,
        image_size=config.image_size,
        channels=config.channels,
        classes=source.classes,
        shards=_write_shards(config, store, prepared, index),
        rejects=rejects,
        reject_counts=counts,
        ingest=config.model_dump(mode="json"),
        **_channel_statistics(config, index),
    )
    write_dataset(store, manifest)
    _remove_unnamed(store, manifest)
    return manifest


def _prepare_all(config: IngestConfig, source: Source) -> ray.data.Dataset:
    items = [{"number": n, "partition": pickle.dumps(p)} for n, p in enumerate(source.partitions)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(
        prepare_partition, fn_kwargs={"config": config}, batch_size=1, batch_format="pyarrow"
    ).materialize()


def prepare_partition(batch: pa.Table, config: IngestConfig) -> pa.Table:
    """Columns number, partition (pickled) -> PREPARED: one row for every image of the partition."""
    number = batch["number"][0].as_py()
    partition: Partition = pickle.loads(batch["partition"][0].as_py())
    rows = [
        {"partition": number, "row": row, "source": image.path, "label": image.label, **_prepared(image, config)}
        for row, image in enumerate(partition.read())
    ]
    return pa.Table.from_pylist(rows, schema=PREPARED)


def _prepared(image: RawImage, config: IngestConfig) -> dict[str, Any]:
    if image.unreadable is not None:
        return {"reason": UNREADABLE, "detail": image.unreadable}
    try:
        data = image.data if isinstance(image.data, bytes) else encode_png(image.data)
        pixels = prepare(data, config)
    except BadImage as error:
        return {"reason": error.reason, "detail": error.message}
    levels = pixels.reshape(-1, config.channels).astype(np.int64)
    return {
        "png": encode_png(pixels),
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "sums": [*levels.sum(0).tolist(), *(levels**2).sum(0).tolist()],
    }


def _write_rejects(store: Store, prepared: ray.data.Dataset, index: pa.Table) -> tuple[tuple[FileEntry, ...], Counts]:
    reasons = Counter(reason for reason in index["reason"].to_pylist() if reason is not None)
    if not reasons:
        return (), {}
    rows = prepared.filter(expr=col("reason").is_not_null()).select_columns(REJECTS.names)
    table = pa.concat_tables(ray.get(rows.to_arrow_refs())).cast(REJECTS).sort_by("source")
    entry = put_file(store, "rejects/part-00000.parquet", parquet_bytes(table, len(table)))
    return (entry,), dict(sorted(reasons.items()))


def _check_share(config: IngestConfig, source: Source, index: pa.Table, counts: Counts) -> None:
    rejected = sum(counts.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    if rejected == index.num_rows:
        raise DataError(f"none of the {index.num_rows} images of {source.name} can be used ({reasons})")
    if rejected > config.max_reject_share * index.num_rows:
        raise DataError(
            f"{rejected} of {index.num_rows} images of {source.name} were rejected ({reasons}), more than "
            f"ingest.max_reject_share = {config.max_reject_share}; the rejects are listed beside the dataset"
        )


def _order(index: pa.Table, config: IngestConfig) -> tuple[dict[int, IntArray], int]:
    """Sample ids by partition and row (-1 for a reject), training images first; and how many of those there are."""
    ranked = sorted(
        (
            is_heldout(row["sha256"], config.heldout_share),
            hashlib.sha256(f"{config.seed}:{row['sha256']}:{row['source']}".encode()).digest(),
            row["partition"],
            row["row"],
        )
        for row in index.to_pylist()
        if row["reason"] is None
    )
    sizes = Counter(index["partition"].to_pylist())
    ids = {partition: np.full(size, -1, np.int64) for partition, size in sizes.items()}
    for sample_id, (_, _, partition, row) in enumerate(ranked):
        ids[partition][row] = sample_id
    return ids, sum(not heldout for heldout, *_ in ranked)


def _write_shards(
    config: IngestConfig, store: Store, prepared: ray.data.Dataset, index: pa.Table
) -> tuple[ShardEntry, ...]:
    ids, num_train = _order(index, config)
    rows = prepared.filter(expr=col("reason").is_null()).map_batches(
        assign_ids, fn_kwargs={"ids": ids, "num_train": num_train, "config": config}, batch_format="pyarrow"
    )
    total_bytes = sum(map(len, ids.values())) * config.image_size**2 * config.channels
    partitions = max(MIN_SHUFFLE_PARTITIONS, total_bytes // SHUFFLE_BYTES)
    written = rows.groupby("shard", num_partitions=partitions).map_groups(
        write_shard, fn_kwargs={"store": store, "num_train": num_train, "config": config}, batch_format="pyarrow"
    )
    entries = [ShardEntry(**row) for row in written.take_all()]
    return tuple(sorted(entries, key=lambda entry: entry.first_id))


def assign_ids(batch: pa.Table, ids: dict[int, IntArray], num_train: int, config: IngestConfig) -> pa.Table:
    """PREPARED -> png, label, sha256, source, sample_id, shard; held-out shards come after the others."""
    pairs = zip(batch["partition"].to_pylist(), batch["row"].to_pylist(), strict=True)
    sample_ids = np.array([ids[partition][row] for partition, row in pairs], np.int64)
    train_shards = -(-num_train // config.shard_rows)
    heldout = train_shards + (sample_ids - num_train) // config.shard_rows
    shards = np.where(sample_ids < num_train, sample_ids // config.shard_rows, heldout)
    kept = batch.select(["png", "label", "sha256", "source"])
    return kept.append_column("sample_id", pa.array(sample_ids)).append_column("shard", pa.array(shards))


def write_shard(group: pa.Table, store: Store, num_train: int, config: IngestConfig) -> pa.Table:
    """Columns of `assign_ids` for one shard -> one row, its ShardEntry; the file is put whole under its final name."""
    group = group.sort_by("sample_id")
    count, first = group.num_rows, group["sample_id"][0].as_py()
    images = [{"bytes": png, "path": path} for png, path in zip(group["png"], group["source"], strict=True)]
    size = pa.array(np.full(count, config.image_size, np.int32))
    columns = [group["sample_id"], pa.array(images, IMAGE), group["label"], size, size, group["sha256"]]
    table = pa.table(columns, schema=DATASET)
    split: Split = "train" if first < num_train else "heldout"
    number = (first if split == "train" else first - num_train) // config.shard_rows
    file = put_file(store, f"data/{split}-{number:05d}.parquet", parquet_bytes(table, config.row_group_rows))
    return pa.Table.from_pylist([{**file.model_dump(), "split": split, "rows": count, "first_id": first}])


def _channel_statistics(config: IngestConfig, index: pa.Table) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation per channel in the model's range [-1, 1], from exact integer sums."""
    sums = [row for row in index["sums"].to_pylist() if row is not None]
    total = [sum(column) for column in zip(*sums, strict=True)]
    count = len(sums) * config.image_size**2
    means = [value / count for value in total[: config.channels]]
    variances = [value / count - mean**2 for value, mean in zip(total[config.channels :], means, strict=True)]
    return {
        "channel_mean": tuple(mean / 127.5 - 1.0 for mean in means),
        "channel_std": tuple(max(variance, 0.0) ** 0.5 / 127.5 for variance in variances),
    }


def _remove_unnamed(store: Store, manifest: DatasetManifest) -> None:
    """What an interrupted ingest of a larger source may have left behind."""
    named = {entry.key for entry in (*manifest.shards, *manifest.rejects)}
    for prefix in ("data/", "rejects/"):
        for entry in store.list(prefix):
            if entry.key not in named:
                store.delete(entry.key)
