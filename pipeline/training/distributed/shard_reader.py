"""Reads and decodes the shards of a lane, as Ray Data tasks.

This module imports no torch: the import would cost each task process seconds at its start and 200 MB.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.images.png import decode_batch
from pipeline.ingest.manifest import DatasetManifest
from pipeline.log import collect
from pipeline.storage.files import read_parquet
from pipeline.storage.retry import retry_through_outage
from pipeline.storage.store import Store
from pipeline.training.data_plan import TrainPlan, Unit

YIELD_BYTES = 8 * 2**20
"""Decoded images that a reader yields at a time, or one micro-batch where that is more."""

UNITS = pa.schema([pa.field(name, pa.int64()) for name in ("epoch", "shard", "first_batch", "skip", "take")])


def batches_together(manifest: DatasetManifest, micro_batch: int) -> int:
    """Micro-batches that a reader yields at a time: Ray takes about a millisecond for each yield."""
    return max(1, YIELD_BYTES // (micro_batch * math.prod(manifest.shape)))


def read_units(
    batch: pa.Table, dataset: Store, manifest: DatasetManifest, plan: TrainPlan, coordinator: Any = None
) -> Iterator[dict[str, Any]]:
    """Units (UNITS) -> rows in the plan's order: image uint8 [H, W, C], sample_id, label (-1: none), epoch, batch.

    coordinator: handle of a coordinator.Coordinator that takes warnings, if any.
    """
    if coordinator is not None:
        collect(coordinator.warn.remote, task="read lane")
    shards, together = manifest.split("train"), batches_together(manifest, plan.micro_batch)
    for row in batch.to_pylist():
        unit = Unit(**row)
        table = retry_through_outage(
            partial(read_parquet, dataset, shards[unit.shard], ["sample_id", "image", "label"]),
            dataset.config.outage_seconds,
            dataset.location(shards[unit.shard].key),
        )
        table = table.take(pa.array(plan.rows(unit)))
        for number in range(0, unit.take - unit.skip, together):
            part = table.slice(number * plan.micro_batch, together * plan.micro_batch)
            pixels = decode_batch(pc.struct_field(part["image"], "bytes").to_pylist(), manifest.shape)
            first = unit.first_batch + unit.skip + number
            yield {
                "image": pixels,
                "sample_id": part["sample_id"].to_numpy(),
                "label": part["label"].fill_null(-1).to_numpy().astype(np.int64),
                "epoch": np.full(len(pixels), unit.epoch),
                "batch": first + np.arange(len(pixels)) // plan.micro_batch,
            }
