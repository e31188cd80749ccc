"""`ddpm reproduce`: make one stored sample again and compare. Needs no Ray.

The sample gets the same place in its batch and the same padding, so on the same kind of machine the result is identical
bit for bit. Other processors and torch versions round differently: up to ROUNDING levels per pixel give a warning, a
larger difference fails verification.
"""

from typing import Any

import numpy as np
import torch

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import read_sealed
from pipeline.generation.generator import ShardGenerator, sample_table
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.images.png import decode_pixels
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store, resolve

ROUNDING = 1
"""Largest pixel difference (of 255 levels) that different machines or library versions explain."""
COMPARED = ("image", "sha256", "status", "error")
"""Columns of the result; all others are settings."""

Row = dict[str, Any]


def reproduce(config: Config, samples: str, sample_id: int, model: str | None = None) -> dict[str, Any]:
    """Make one sample of a sealed folder again and compare. model: URI of the model, if it has moved.

    Raises ConfigError for an unknown id, DataError for unsealed samples or a missing model, VerificationFailed for a
    different model or a different result.
    """
    folder = resolve(samples, config.storage)
    plan, manifest = read_sealed(folder)
    if not 0 <= sample_id < plan.num_samples:
        raise ConfigError(f"--id must lie in 0..{plan.num_samples - 1} for {folder.uri} (got {sample_id})")
    planned = PlannedSamples(plan, load_requests(folder, plan))
    shard = planned.layout.shard_of(sample_id)
    ids = planned.layout.ids(shard)
    stored = read_samples(folder, manifest.shards[shard]).slice(sample_id - ids.start, 1).to_pylist()[0]
    start = (sample_id - ids.start) // plan.batch_size * plan.batch_size
    batch = ids[start : start + plan.batch_size]
    images = _generator(config, folder, planned, model).shard(batch)
    made = sample_table(plan, images).slice(sample_id - batch.start, 1).to_pylist()[0]
    return _compared(f"sample {sample_id} of {folder.uri}", plan, stored, made)


def _generator(config: Config, folder: Store, planned: PlannedSamples, model: str | None) -> ShardGenerator:
    plan = planned.plan
    try:
        found = find_model(model or plan.model_uri, plan.weights, config.storage, plan.null_label)
    except DataError as error:
        raise DataError(f"{error}; {folder.uri} was made from it: if the model has moved, give --model URI") from error
    if found.digest != plan.model_digest:
        raise VerificationFailed(f"{found.uri} is not the model that {folder.uri} was made from")
    if not config.ray.use_gpu:
        torch.set_num_threads(1)  # as in the actors: more threads may change the order of summation
    device = torch.device("cuda" if config.ray.use_gpu else "cpu")
    return ShardGenerator(load_unet(found, config.storage), plan, device, planned.requests)


def _compared(what: str, plan: SamplePlan, stored: Row, made: Row) -> dict[str, Any]:
    different = [name for name in made if name not in COMPARED and made[name] != stored[name]]
    if different:
        raise VerificationFailed(f"{what}: its row differs from its plan in {', '.join(different)} (see ddpm verify)")
    result = {"sample_id": made["sample_id"], "sha256": stored["sha256"], "made_sha256": made["sha256"]}
    if STATUS_OK not in (stored["status"], made["status"]):
        return {**result, "state": "failed again", "summary": f"failed again: {what}: {made['error']}"}
    if stored["status"] != made["status"]:
        was, now_is = (row["error"] or "an image" for row in (stored, made))
        raise VerificationFailed(f"{what}: stored {was}, now {now_is}")
    before, now = (decode_pixels(row["image"]["bytes"], plan.image_size**2).astype(int) for row in (stored, made))
    difference = int(np.abs(before - now).max())
    result["max_difference"] = difference
    if stored["sha256"] == made["sha256"]:
        return {**result, "state": "equal", "summary": f"equal: {what}: sha256 {stored['sha256']}"}
    hashes = f"sha256 {stored['sha256']} stored, {made['sha256']} made here"
    if difference > ROUNDING:
        raise VerificationFailed(
            f"{what} cannot be reproduced: pixels differ by up to {difference} of 255 levels; {hashes}"
        )
    text = (
        f"warning: not bit-identical: {what}: pixels differ by at most {difference} of 255 levels, as between "
        f"machines or library versions; {hashes}"
    )
    return {**result, "state": "close", "summary": text}
