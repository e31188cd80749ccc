"""Small stored runs, samples, scores and datasets for tests of reports."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits
from tiny_samples import sample_plan

from pipeline.config.root import Config
from pipeline.evaluation.results import write_evaluation
from pipeline.generation.commit import commit_shard, create_plan, read_plan, seal
from pipeline.generation.shard_metrics import ShardMetrics
from pipeline.images.convert import grid
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.feature_stats import Score
from pipeline.model_store.checkpoint import write_checkpoint
from pipeline.model_store.manifest import CheckpointManifest
from pipeline.schema import DATASET, IMAGE, SAMPLES
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store
from pipeline.training.metrics_table import write_metrics

STEPS, BATCH = 250, 32
GRID_STEPS = (100, 200, 250)
CONFIG = Config.model_validate({"train": {"steps": STEPS, "lr": 3e-4}})
FAILED = 3
DIGITS = (load_digits().images * 255 / 16).round().astype(np.uint8)[..., None]


def loss_at(step: int) -> float:
    return 1 / step


def make_run(store: Store, steps: int = STEPS, config: Config = CONFIG, dataset_digest: str = "d" * 64) -> None:
    """Loss 1 / step on two workers; grids at GRID_STEPS."""
    rows = [
        {
            "step": step,
            "images": step * BATCH,
            "epoch": 0,
            "loss": loss_at(step),
            "lr": 3e-4 * min(step / 10, 1),
            "grad_norm": 2 + step % 5,
            "step_seconds": 0.5 if step > 1 else 60.0,
            "data_wait_seconds": 0.05,
            "world_size": 2,
        }
        for step in range(1, steps + 1)
    ]
    parts = [write_metrics(store, rows[:100]), write_metrics(store, rows[100:])]
    write_metrics(store, [{**rows[-1], "step": 999, "loss": 77.0}])  # of an attempt whose metrics no checkpoint lists
    write_checkpoint(
        store,
        CheckpointManifest(
            step=steps,
            images=steps * BATCH,
            epoch=0,
            batches=steps,
            world_size=2,
            dataset_digest=dataset_digest,
            image_size=8,
            channels=1,
            classes=None,
            config=config.model_dump(mode="json"),
            config_digest="c" * 64,
            lane_digests=("x",),
            metric_parts=tuple(parts),
            ema=("ema",),
            files=(),
        ),
    )
    for step in GRID_STEPS:
        store.put(f"grids/step-{step:09d}.png", grid_png(step))


def grid_png(step: int) -> bytes:
    return encode_png(grid(DIGITS[step : step + 9], 3, 2, 2))


def make_samples(
    store: Store,
    num: int = 150,
    num_classes: int | None = None,
    model_uri: str = "m",
    model_digest: str = "e" * 64,
) -> None:
    """The first digits as samples, in three shards; the last is much later. Sample FAILED has no image."""
    plan = sample_plan(
        num_samples=num,
        shard_size=64,
        batch_size=16,
        seed=5,
        model_uri=model_uri,
        model_digest=model_digest,
        steps=10,
        image_size=8,
        num_classes=num_classes,
    )
    create_plan(store, plan)
    for shard, first in enumerate(range(0, num, 64)):
        rows = [sample(i, num_classes) for i in range(first, min(first + 64, num))]
        commit_shard(store, plan, shard, pa.Table.from_pylist(rows, schema=SAMPLES), "a")
    seal(store, plan)
    log = ShardMetrics(store)
    for i, rows, started, seconds in SHARDS:
        speed = {"started": started, "seconds": seconds, "img_s": rows / seconds}
        log.add({"shard": i, "rows": rows, "failed": 0, "node": "n", **speed})
    log.flush()


SHARDS = ((0, 64, 1000.0, 2.0), (1, 64, 1001.0, 4.0), (2, 22, 9000.0, 2.0))
"""(shard, rows, start, seconds): two actors for 5 seconds, and the last shard much later."""


def sample(sample_id: int, num_classes: int | None = None) -> dict:
    failed = sample_id == FAILED
    image = None if failed else {"bytes": encode_png(DIGITS[sample_id]), "path": None}
    return {
        "sample_id": sample_id,
        "image": image,
        "label": None if num_classes is None else sample_id % num_classes,
        "seed": 5,
        "model_digest": "e" * 64,
        "ema": "ema",
        "sampler": "ddim",
        "steps": 10,
        "eta": 0.0,
        "width": 8,
        "height": 8,
        "status": "failed" if failed else "ok",
    }


def make_scores(store: Store, value: float = 5.25, warnings: tuple[str, ...] = (), **protocol_fields: Any) -> None:
    values = {"samples": value, "floor": 1.0625, "blurred": 46.5, "noise": 78.875}
    scores = [Score(metric="FD-class-cnn", kind=k, value=v, n=140, reference_n=900) for k, v in values.items()]
    scores += [
        Score(metric="KD-class-cnn", kind=k, value=v / 100, spread=0.004321, n=140, reference_n=900)
        for k, v in values.items()
    ]
    protocol = {
        "id": hashlib.sha256(str(value).encode()).hexdigest(),
        "dataset_digest": "d" * 64,
        "samples_plan": read_plan(store).fingerprint,
        "reference": "train",
        "n": 140,
        "failed": 1,
        "extractor": "class-cnn",
        "weights_sha256": "ab12" * 16,
        "preprocessing": "uint8 8x8x1 / 127.5 - 1, no resize",
        "feature_dim": 128,
        "heldout_accuracy": 0.973,
        "warnings": warnings,
        **protocol_fields,
    }
    write_evaluation(store, tuple(scores), protocol)


def make_dataset(store: Store, heldout: int = 0) -> None:
    """120 training images of digits, then held-out ones; two rejected images."""
    entries = []
    for split, first, count in (("train", 0, 120), ("heldout", 120, heldout)):
        if count:
            file = put_file(store, f"data/{split}-00000.parquet", parquet_bytes(dataset_rows(first, count), 50))
            entries.append(ShardEntry(**file.model_dump(), split=split, rows=count, first_id=first))
    manifest = DatasetManifest(
        source="digits",
        source_rows=120 + heldout + 2,
        image_size=8,
        channels=1,
        classes=None,
        shards=tuple(entries),
        rejects=(),
        reject_counts={"truncated": 2},
        channel_mean=(0.0,),
        channel_std=(1.0,),
        ingest={},
    )
    write_dataset(store, manifest)


def dataset_rows(first: int, count: int) -> pa.Table:
    """DATASET rows of some digits."""
    images = pa.array([{"bytes": encode_png(i), "path": None} for i in DIGITS[first : first + count]], IMAGE)
    size, ids = pa.array(np.full(count, 8, np.int32)), np.arange(first, first + count)
    return pa.table([ids, images, pa.nulls(count, pa.int32()), size, size, ["h"] * count], schema=DATASET)
