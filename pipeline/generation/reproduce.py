"""One stored sample -> the same sample made again, from what the store says of it; no Ray.

It is made at the place in its batch that the plan gives it, with the same padding, so on the same kind of machine it is
equal to the bit. Other processors, and other versions of torch, round differently: a largest difference of ROUNDING
levels in a pixel is told as such, anything above it is a contradiction.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import read_sealed
from pipeline.generation.generator import ShardGenerator, sample_table
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import Assignments
from pipeline.images.png import decode_pixels
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.schema import STATUS_OK
from pipeline.storage.sample_shards import read_samples
from pipeline.storage.store import Store, resolve

__all__ = ["reproduce"]

ROUNDING = 1
"""Levels of 255 by which a pixel may differ between kinds of machines."""
COMPARED = ("image", "sha256", "status", "error")
"""Columns that say what came out; the others say what was asked for."""

Row = dict[str, Any]


def reproduce(config: Config, samples: str, sample_id: int, model: str | None = None) -> dict[str, Any]:
    """Make one sample of a sealed job again and compare. model: where the model lies now, if it has moved.

    Raises ConfigError for an id that the job does not have, DataError when the samples are not sealed or the model is
    not there, VerificationFailed when the model is another one or the sample comes out otherwise.
    """
    job = resolve(samples, config.storage)
    plan, manifest = read_sealed(job)
    if not 0 <= sample_id < plan.num_samples:
        raise ConfigError(f"--id must lie in 0..{plan.num_samples - 1} for {job.uri} (got {sample_id})")
    assignments = Assignments(plan, load_requests(job, plan))
    shard = assignments.layout.shard_of(sample_id)
    ids = assignments.layout.ids(shard)
    stored = read_samples(job, manifest.shards[shard]).slice(sample_id - ids.start, 1).to_pylist()[0]
    start = (sample_id - ids.start) // plan.batch_size * plan.batch_size
    batch = ids[start : start + plan.batch_size]
    images = _generator(config, job, assignments, model).shard(batch)
    made = sample_table(plan, images).slice(sample_id - batch.start, 1).to_pylist()[0]
    return _compared(f"sample {sample_id} of {job.uri}", plan, stored, made)


def _generator(config: Config, job: Store, assignments: Assignments, model: str | None) -> ShardGenerator:
    plan = assignments.plan
    try:
        found = find_model(model or plan.model_uri, plan.weights, config.storage)
    except DataError as error:
        raise DataError(f"{error}; {job.uri} was made from it: if it has moved, say where (--model URI)") from error
    if found.digest != plan.model_digest:
        raise VerificationFailed(f"{found.uri} is another model than the one that {job.uri} was made from")
    if not config.ray.use_gpu:
        torch.set_num_threads(1)  # as the actors did: more threads may add in another order
    device = torch.device("cuda" if config.ray.use_gpu else "cpu")
    return ShardGenerator(load_unet(found, config.storage), plan, device, assignments.requests)


def _compared(what: str, plan: SamplePlan, stored: Row, made: Row) -> dict[str, Any]:
    otherwise = [name for name in made if name not in COMPARED and made[name] != stored[name]]
    if otherwise:
        raise VerificationFailed(f"{what}: its row says another {', '.join(otherwise)} than its plan (ddpm verify)")
    result = {"sample_id": made["sample_id"], "sha256": stored["sha256"], "made_sha256": made["sha256"]}
    if STATUS_OK not in (stored["status"], made["status"]):
        return {**result, "state": "failed again", "summary": f"failed again: {what}: {made['error']}"}
    if stored["status"] != made["status"]:
        then, now = (row["error"] or "an image" for row in (stored, made))
        raise VerificationFailed(f"{what}: then {then}, now {now}")
    difference = int(np.abs(_levels(plan, stored) - _levels(plan, made)).max())
    result["max_difference"] = difference
    if stored["sha256"] == made["sha256"]:
        text = f"equal: {what}: sha256 {stored['sha256']}"
    elif difference <= ROUNDING:
        text = (
            f"warning: not equal to the bit: {what}: pixels differ by at most {difference} of 255 levels, as another "
            f"kind of machine or version explains; sha256 {stored['sha256']} stored, {made['sha256']} made here"
        )
    else:
        raise VerificationFailed(
            f"{what} comes out otherwise: pixels differ by up to {difference} of 255 levels; "
            f"sha256 {stored['sha256']} stored, {made['sha256']} made here"
        )
    state = "equal" if stored["sha256"] == made["sha256"] else "close"
    return {**result, "state": state, "summary": text}


def _levels(plan: SamplePlan, row: Row) -> NDArray[np.int64]:
    return decode_pixels(row["image"]["bytes"], plan.image_size**2).astype(np.int64)
