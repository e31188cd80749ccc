"""Held-out images -> bits per dimension of the model that drew the samples, batch by batch over Ray Data."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from pipeline.engine.heldout_bound import heldout_bound
from pipeline.engine.images import decode_batch
from pipeline.errors import DataError
from pipeline.manifests import ShardEntry
from pipeline.metrics.scoring import bits_score
from pipeline.metrics.sketch import Score
from pipeline.models.unet import UNet
from pipeline.progress import Progress
from pipeline.stages.sketching import Job
from pipeline.storage.models import StoredModel, find_model, load_unet
from pipeline.storage.shards import read_parquet

__all__ = ["heldout_bits"]

_BATCH = 16


def heldout_bits(job: Job) -> Iterator[Score]:
    """The bound of the first `evaluate.bits_per_dim` held-out images; nothing when that is 0.

    Raises DataError when there are not so many, or the model is not the one that drew the samples any more.
    """
    wanted = job.config.evaluate.bits_per_dim
    if not wanted:
        return
    if wanted > job.manifest.rows("heldout"):
        raise DataError(
            f"evaluate.bits_per_dim asks for {wanted:,} held-out images, {job.dataset.uri} has "
            f"{job.manifest.rows('heldout'):,}"
        )
    model = find_model(job.plan.model_uri, job.plan.weights, job.config.storage)
    if model.digest != job.plan.model_digest:
        raise DataError(f"{job.plan.model_uri} is not the model that drew {job.samples.uri}: leave out bits_per_dim")
    items = list(_batches(job, wanted))
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _bound,
        fn_kwargs={"job": job, "model": model},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(job.config.ray.max_workers),
    )
    progress, bits = Progress("bits/dim", wanted, "img"), {}
    for row in found.iter_rows():
        bits[row["sample_id"]] = row["bits"]
        progress.update(len(bits))
    progress.close()
    yield bits_score(np.array([bits[i] for i in sorted(bits)]))


def _batches(job: Job, wanted: int) -> Iterator[dict[str, int]]:
    for shard, entry in enumerate(job.manifest.split("heldout")):
        rows = min(entry.rows, wanted)
        wanted -= rows
        for start in range(0, rows, _BATCH):
            yield {"shard": shard, "start": start, "rows": min(_BATCH, rows - start)}


def _bound(batch: pa.Table, job: Job, model: StoredModel) -> pa.Table:
    """Columns shard, start, rows of one batch -> columns sample_id, bits, a row an image."""
    torch.set_num_threads(1)
    shard, start, rows = (batch[name][0].as_py() for name in ("shard", "start", "rows"))
    entry: ShardEntry = job.manifest.split("heldout")[shard]
    table = read_parquet(job.dataset, entry, ["sample_id", "image", "label"]).slice(start, rows)
    images = decode_batch(pc.struct_field(table["image"], "bytes").to_pylist(), job.shape)
    ids = table["sample_id"].to_numpy()
    labels = table["label"].to_numpy() if job.labelled and job.plan.num_classes is not None else None
    bits = heldout_bound(_unet(model, job), job.plan, images, ids, labels, job.config.evaluate.seed)
    return pa.table({"sample_id": ids, "bits": bits})


_LOADED: dict[str, UNet] = {}
"""The network of this process, by digest; one at a time."""


def _unet(model: StoredModel, job: Job) -> UNet:
    if model.digest not in _LOADED:
        _LOADED.clear()
        _LOADED[model.digest] = load_unet(model, job.config.storage)
    return _LOADED[model.digest]
