"""Plans and shards of samples without a network, for tests of the commit protocol."""

import hashlib

import numpy as np
import pyarrow as pa

from pipeline.generation.commit import commit_shard, create_plan, seal
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.images.png import encode_png
from pipeline.schema import SAMPLES, STATUS_FAILED, STATUS_OK
from pipeline.storage.store import Store

SIZE = 4


def sample_plan(**changes) -> SamplePlan:
    """10 samples in 3 shards of 4, 4 and 2."""
    values = {
        "num_samples": 10,
        "shard_size": 4,
        "batch_size": 2,
        "seed": 3,
        "model_uri": "m",
        "model_digest": "f" * 64,
        "weights": "ema",
        "sampler": "ddim",
        "steps": 5,
        "eta": 0.0,
        "variance": "fixed_large",
        "clip": True,
        "image_size": SIZE,
        "channels": 1,
        "num_classes": None,
        "diffusion": {},
    }
    return SamplePlan(**{**values, **changes})


def sample_png(sample_id: int, variant: int = 0) -> bytes:
    """Another image for every id and variant."""
    return encode_png(np.full((SIZE, SIZE, 1), (7 * sample_id + 101 * variant) % 256, np.uint8))


def shard_table(plan: SamplePlan, shard: int, variant: int = 0, failed: tuple[int, ...] = ()) -> pa.Table:
    """The rows of a shard; `variant` stands for a machine whose arithmetic differs in the last bit."""
    rows = []
    for sample_id in PlannedSamples(plan).layout.ids(shard):
        png = None if sample_id in failed else sample_png(sample_id, variant)
        rows.append(
            {
                "sample_id": sample_id,
                "image": None if png is None else {"bytes": png, "path": None},
                "label": None if plan.num_classes is None else sample_id % plan.num_classes,
                "seed": plan.seed,
                "model_digest": plan.model_digest,
                "ema": plan.weights,
                "sampler": plan.sampler,
                "steps": plan.steps,
                "eta": plan.eta,
                "width": plan.image_size,
                "height": plan.image_size,
                "sha256": None if png is None else hashlib.sha256(png).hexdigest(),
                "status": STATUS_OK if png else STATUS_FAILED,
                "error": None if png else "NaN",
            }
        )
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def write_samples(
    job: Store, plan: SamplePlan | None = None, sealed: bool = True, failed: tuple[int, ...] = ()
) -> Store:
    """A finished job."""
    plan = plan or sample_plan()
    create_plan(job, plan)
    for shard in range(plan.num_shards):
        commit_shard(job, plan, shard, shard_table(plan, shard, failed=failed), f"attempt-{shard}")
    if sealed:
        seal(job, plan)
    return job
