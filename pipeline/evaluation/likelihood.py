"""Likelihood bound of held-out images under the model of the samples, in bits per dimension; runs on Ray Data."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.likelihood import bits_per_dim
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Objective
from pipeline.errors import DataError
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.stored_images import Pixels, decode_column, first_rows, read_usable
from pipeline.generation.generator import plan_denoiser
from pipeline.generation.manifest import SamplePlan
from pipeline.images.convert import to_model
from pipeline.metrics.feature_stats import Score
from pipeline.metrics.scoring import bits_score
from pipeline.model_store.load_model import StoredModel, find_model, load_unet
from pipeline.models.unet import UNet
from pipeline.progress import Progress


def heldout_bound(
    unet: UNet, plan: SamplePlan, images: Pixels, ids: NDArray[np.int64], labels: NDArray[np.int64] | None, seed: int
) -> NDArray[np.float64]:
    """Upper bounds on -log2 p(x_0) per dimension, float64 [B], of images uint8 [B, H, W, C], in T network calls.

    The noise of a row depends on (seed, id) alone. A class-conditional model gets `labels` int64 [B], or the null label
    when `labels` is None. Guidance does not apply: it changes sampling, not the model's likelihood.
    """
    x_0 = to_model(images)
    noise = SampleNoise(seed, torch.from_numpy(ids), tuple(x_0.shape[1:]))
    condition = None
    if plan.num_classes is not None:
        null = np.full(len(ids), plan.num_classes, np.int64)
        condition = torch.from_numpy(null if labels is None else labels.astype(np.int64))
    objective = Objective(DiffusionConfig.model_validate(plan.diffusion), plan.channels)
    return np.asarray(bits_per_dim(objective, plan_denoiser(unet, plan, condition, None), x_0, noise).total.numpy())


_BATCH = 16


def heldout_bits(context: EvaluationContext) -> Iterator[Score]:
    """The mean bound of the first `evaluate.bits_per_dim` held-out images; nothing when that setting is 0.

    Raises DataError when the dataset has fewer held-out images, or the model differs from the model of the samples.
    """
    wanted = context.config.evaluate.bits_per_dim
    if not wanted:
        return
    if wanted > context.manifest.rows("heldout"):
        raise DataError(
            f"evaluate.bits_per_dim is {wanted:,}, but {context.dataset.uri} has only "
            f"{context.manifest.rows('heldout'):,} held-out images"
        )
    model = find_model(context.plan.model_uri, context.plan.weights, context.config.storage, context.plan.null_label)
    if model.digest != context.plan.model_digest:
        raise DataError(
            f"{context.plan.model_uri} has changed since it generated {context.samples.uri}: omit evaluate.bits_per_dim"
        )
    if context.plan.num_classes is not None and not (context.labelled or model.model.null_class):
        raise DataError(
            f"evaluate.bits_per_dim: the model has no class for images without a label, and {context.dataset.uri} has "
            "no labels of its classes: omit the setting"
        )
    items = list(_batches(context, wanted))
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _bound,
        fn_kwargs={"context": context, "model": model},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(context.config.ray.max_workers),
    )
    progress, bits = Progress("bits/dim", wanted, "img"), {}
    for row in found.iter_rows():
        bits[row["sample_id"]] = row["bits"]
        progress.update(len(bits))
    progress.close()
    yield bits_score(np.array([bits[i] for i in sorted(bits)]))


def _batches(context: EvaluationContext, wanted: int) -> Iterator[dict[str, int]]:
    for shard, _, rows in first_rows(context.manifest.split("heldout"), wanted):
        for start in range(0, rows, _BATCH):
            yield {"shard": shard, "start": start, "rows": min(_BATCH, rows - start)}


def _bound(batch: pa.Table, context: EvaluationContext, model: StoredModel) -> pa.Table:
    """Columns shard, start, rows of one batch -> columns sample_id and bits, one row per image."""
    torch.set_num_threads(1)
    shard, start, rows = (batch[name][0].as_py() for name in ("shard", "start", "rows"))
    entry = context.manifest.split("heldout")[shard]
    table = read_usable(context.dataset, entry, ("sample_id", "image", "label"), start, rows)
    images = decode_column(table, context.shape)
    ids = table["sample_id"].to_numpy()
    labels = table["label"].to_numpy() if context.labelled and context.plan.num_classes is not None else None
    bits = heldout_bound(_unet(model, context), context.plan, images, ids, labels, context.config.evaluate.seed)
    return pa.table({"sample_id": ids, "bits": bits})


_LOADED: dict[str, UNet] = {}
"""The network that this process has loaded, by model digest; at most one."""


def _unet(model: StoredModel, context: EvaluationContext) -> UNet:
    if model.digest not in _LOADED:
        _LOADED.clear()
        _LOADED[model.digest] = load_unet(model, context.config.storage)
    return _LOADED[model.digest]
