"""A network and a plan to images: the bytes of a sample are a function of the plan and its id alone.

A shard is cut into batches of one fixed size from its first id on, the last one padded, so every sample meets the same
shapes at the same place of its batch whoever makes it. The noise of a row depends on (seed, id) only.
"""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import DiffusionConfig
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import Sampler, make_sampler
from pipeline.engine.images import encode_png, to_uint8
from pipeline.manifests import SamplePlan
from pipeline.models.unet import UNet
from pipeline.planning import label_of
from pipeline.schema import IMAGE, SAMPLES, STATUS_FAILED, STATUS_OK

__all__ = ["Images", "ShardGenerator", "plan_sampler", "sample_table"]

NOT_FINITE = "the network gave NaN or infinity, twice"

ATTEMPTS = 2
"""How often a sample is tried before it is given up: the second helps when a passing fault spoiled the first."""


@dataclass(frozen=True)
class Images:
    """ids; pixels uint8 [N, H, W, C]; finite bool [N], False where the network gave NaN or infinity (pixels are 0)."""

    ids: range
    pixels: NDArray[np.uint8]
    finite: NDArray[np.bool_]


def plan_sampler(plan: SamplePlan) -> Sampler:
    """The sampler that a plan names. Raises ConfigError when the process has no such one."""
    variance = plan.variance if plan.variance in ("fixed_small", "fixed_large") else None
    diffusion = DiffusionConfig.model_validate(plan.diffusion)
    return make_sampler(diffusion, plan.sampler, plan.steps, plan.eta, variance, plan.clip)  # type: ignore[arg-type]


class ShardGenerator:
    """Makes shards of one plan with one network, in its present process and on its device."""

    def __init__(self, model: UNet, plan: SamplePlan, device: torch.device) -> None:
        self.plan = plan
        self.device = device
        self._model: nn.Module = model.to(device).eval()
        if plan.compile:
            # Shapes never change, and inductor's cache on disk serves every actor of a node.
            self._model.compile(dynamic=False)
        self._sampler = plan_sampler(plan)

    def shard(self, ids: range) -> Images:
        """The images of `ids`, which begin a shard."""
        steps = self.steps(ids)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                images: Images = end.value
                return images

    @torch.inference_mode()
    def steps(self, ids: range) -> Generator[int, None, Images]:
        """As `shard`, pausing after every sampling step to tell how many images are finished."""
        size = self.plan.batch_size
        pixels: list[NDArray[np.uint8]] = []
        finite: list[NDArray[np.bool_]] = []
        for start in range(0, len(ids), size):
            batch = ids[start : start + size]
            x_0 = yield from self._samples(batch, start)
            good = x_0.isfinite().flatten(1).all(1)
            pixels.append(to_uint8(torch.where(good[:, None, None, None], x_0, -1.0)))
            finite.append(good.cpu().numpy())
        return Images(ids, np.concatenate(pixels), np.concatenate(finite))

    def _samples(self, ids: range, done: int) -> Generator[int, None, Tensor]:
        """float32 [len(ids), C, H, W]; what is not finite at the first attempt is taken from the second."""
        x_0 = yield from self._attempt(ids, done)
        for _ in range(ATTEMPTS - 1):
            bad = ~x_0.isfinite().flatten(1).all(1)
            if not bad.any():
                break
            again = yield from self._attempt(ids, done)
            x_0 = torch.where(bad[:, None, None, None], again, x_0)
        return x_0

    def _attempt(self, ids: range, done: int) -> Generator[int, None, Tensor]:
        plan = self.plan
        padded = [*ids, *[ids[-1]] * (plan.batch_size - len(ids))]
        labels: Tensor | None = None
        if plan.num_classes is not None:
            labels = torch.tensor([label_of(i, plan.num_classes) for i in padded], device=self.device)

        def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self._model(x_t, t[:1], labels)  # one t for the whole batch
            return out

        shape = (plan.channels, plan.image_size, plan.image_size)
        x_0 = torch.empty(0)
        noise = SampleNoise(plan.seed, torch.tensor(padded, device=self.device), shape)
        for state in self._sampler.run(denoiser, noise):
            x_0 = state.x_t
            yield done
        return x_0[: len(ids)]


def sample_table(plan: SamplePlan, images: Images) -> pa.Table:
    """The rows (SAMPLES) of a shard; what could not be made has a status and an error, and no image."""
    encoded = [_encoded(p) if ok else NOT_FINITE for p, ok in zip(images.pixels, images.finite, strict=True)]
    pngs = [png if isinstance(png, bytes) else None for png in encoded]
    classes, count = plan.num_classes, len(pngs)
    columns = {
        "sample_id": list(images.ids),
        "image": pa.array([None if png is None else {"bytes": png, "path": None} for png in pngs], IMAGE),
        "label": [None if classes is None else label_of(i, classes) for i in images.ids],
        "seed": [plan.seed] * count,
        "model_digest": [plan.model_digest] * count,
        "ema": [plan.weights] * count,
        "sampler": [plan.sampler] * count,
        "steps": [plan.steps] * count,
        "eta": [plan.eta] * count,
        "guidance": [None] * count,
        "width": [plan.image_size] * count,
        "height": [plan.image_size] * count,
        "sha256": [None if png is None else hashlib.sha256(png).hexdigest() for png in pngs],
        "status": [STATUS_FAILED if png is None else STATUS_OK for png in pngs],
        "error": [None if isinstance(error, bytes) else error for error in encoded],
    }
    return pa.table(columns, schema=SAMPLES)


def _encoded(pixels: NDArray[np.uint8]) -> bytes | str:
    """PNG bytes, or what the encoder complained about."""
    try:
        return encode_png(pixels)
    except (ValueError, OSError) as error:
        return f"encoder: {error}"
