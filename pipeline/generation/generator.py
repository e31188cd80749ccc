"""A network and a plan to images: the bytes of a sample are a function of the plan and its id alone.

A shard is cut into batches of one fixed size from its first id on, the last one padded, so every sample meets the same
shapes at the same place of its batch whoever makes it. The noise of a row depends on (seed, id) only.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.root import DiffusionConfig
from pipeline.diffusion.guidance import guided_by_label
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Denoiser
from pipeline.diffusion.sampler import make_sampler
from pipeline.diffusion.timestep_grid import Sampler
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.requests import Requests
from pipeline.generation.sample_plan import Assignment, Assignments
from pipeline.images.convert import to_uint8
from pipeline.images.png import encode_png
from pipeline.models.unet import UNet
from pipeline.schema import IMAGE, REQUESTED_SAMPLES, SAMPLES, STATUS_FAILED, STATUS_OK

__all__ = ["Images", "ShardGenerator", "Step", "plan_denoiser", "plan_sampler", "sample_table"]

NOT_FINITE = "the network gave NaN or infinity, twice"

ATTEMPTS = 2
"""How often a sample is tried before it is given up: the second helps when a passing fault spoiled the first."""


@dataclass(frozen=True)
class Step:
    """After a sampling step: how many images of the shard are finished; `pixels` of a batch that has just been."""

    done: int
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Images:
    """pixels uint8 [N, H, W, C]; finite bool [N], False where the network gave NaN or infinity (pixels are 0)."""

    work: Assignment
    pixels: NDArray[np.uint8]
    finite: NDArray[np.bool_]


def plan_sampler(plan: SamplePlan, name: str | None = None, steps: int | Sequence[int] | None = None) -> Sampler:
    """The sampler that a plan names, or another of its process; steps: how many, or the ascending timestep indices.

    Raises ConfigError when there is no such one.
    """
    variance = plan.variance if plan.variance in ("fixed_small", "fixed_large") else None
    diffusion = DiffusionConfig.model_validate(plan.diffusion)
    name, steps = name or plan.sampler, steps or plan.steps
    return make_sampler(diffusion, name, steps, plan.eta, variance, plan.clip)  # type: ignore[arg-type]


def plan_denoiser(
    model: Callable[..., Tensor], plan: SamplePlan, labels: Tensor | None, guidance: float | None
) -> Denoiser:
    """The network for rows of these labels (int64 [B], None: no classes), guided where the plan says unless None."""

    def ask(x_t: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        return model(x_t, t[:1], given)  # one t for the whole batch

    if labels is None or plan.num_classes is None or guidance is None:
        return lambda x_t, t: ask(x_t, t, labels)
    null_labels = torch.full_like(labels, plan.num_classes)
    return guided_by_label(ask, labels, null_labels, guidance, plan.guidance_interval)


class ShardGenerator:
    """Makes shards of one plan with one network, in its present process and on its device."""

    def __init__(self, model: UNet, plan: SamplePlan, device: torch.device, requests: Requests | None = None) -> None:
        self.plan = plan
        self.device = device
        self._model: nn.Module = model.to(device).eval()
        if plan.compile:
            # Shapes never change, and inductor's cache on disk serves every actor of a node.
            self._model.compile(dynamic=False)
        self._assignments = Assignments(plan, requests)
        self._samplers: dict[tuple[str, int], Sampler] = {}

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
    def steps(self, ids: range) -> Generator[Step, None, Images]:
        """As `shard`, pausing after every sampling step and every batch."""
        size = self.plan.batch_size
        pixels: list[NDArray[np.uint8]] = []
        finite: list[NDArray[np.bool_]] = []
        for start in range(0, len(ids), size):
            x_0 = yield from self._samples(self._assignments.of(ids[start : start + size]), start)
            good = x_0.isfinite().flatten(1).all(1)
            pixels.append(to_uint8(torch.where(good[:, None, None, None], x_0, -1.0)))
            finite.append(good.cpu().numpy())
            yield Step(start + len(pixels[-1]), pixels[-1])
        return Images(self._assignments.of(ids), np.concatenate(pixels), np.concatenate(finite))

    def _samples(self, work: Assignment, done: int) -> Generator[Step, None, Tensor]:
        """float32 [N, C, H, W]; what is not finite at the first attempt is taken from the second."""
        x_0 = yield from self._attempt(work, done)
        for _ in range(ATTEMPTS - 1):
            bad = ~x_0.isfinite().flatten(1).all(1)
            if not bad.any():
                break
            again = yield from self._attempt(work, done)
            x_0 = torch.where(bad[:, None, None, None], again, x_0)
        return x_0

    def _attempt(self, work: Assignment, done: int) -> Generator[Step, None, Tensor]:
        plan, size = self.plan, self.plan.batch_size
        ids = _padded(np.arange(work.ids.start, work.ids.stop), size)
        seeds = _padded(work.seeds, size).tolist()
        labels = None if work.labels is None else torch.from_numpy(_padded(work.labels, size)).to(self.device)
        shape = (plan.channels, plan.image_size, plan.image_size)
        seed = seeds[0] if len(set(seeds)) == 1 else tuple(seeds)
        noise = SampleNoise(seed, torch.from_numpy(ids).to(self.device), shape)
        denoiser = plan_denoiser(self._model, plan, labels, work.guidance)
        x_0 = torch.empty(0)
        for state in self._sampler(work).run(denoiser, noise):
            x_0 = state.x_t
            yield Step(done)
        return x_0[: len(work.ids)]

    def _sampler(self, work: Assignment) -> Sampler:
        key = work.sampler, work.steps
        if key not in self._samplers:
            self._samplers[key] = plan_sampler(self.plan, *key)
        return self._samplers[key]


def _padded(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """int64 [size]: the last value repeated, so that every forward pass has one shape."""
    return np.concatenate([values, np.full(size - len(values), values[-1])])


def sample_table(plan: SamplePlan, images: Images) -> pa.Table:
    """The rows of a shard (SAMPLES or REQUESTED_SAMPLES); what could not be made has status and error, and no image."""
    encoded = [_encoded(p) if ok else NOT_FINITE for p, ok in zip(images.pixels, images.finite, strict=True)]
    pngs = [png if isinstance(png, bytes) else None for png in encoded]
    work, count = images.work, len(pngs)
    columns = {
        "sample_id": np.arange(work.ids.start, work.ids.stop),
        "image": pa.array([None if png is None else {"bytes": png, "path": None} for png in pngs], IMAGE),
        "label": [None] * count if work.labels is None else work.labels,
        "seed": work.seeds.astype(np.uint64),
        "model_digest": [plan.model_digest] * count,
        "ema": [plan.weights] * count,
        "sampler": [work.sampler] * count,
        "steps": [work.steps] * count,
        "eta": [plan.eta if work.sampler == "ddim" else 0.0] * count,
        "guidance": [work.guidance] * count,
        "width": [plan.image_size] * count,
        "height": [plan.image_size] * count,
        "sha256": [None if png is None else hashlib.sha256(png).hexdigest() for png in pngs],
        "status": [STATUS_FAILED if png is None else STATUS_OK for png in pngs],
        "error": [None if isinstance(error, bytes) else error for error in encoded],
    }
    if work.request_ids is None:
        return pa.table(columns, schema=SAMPLES)
    return pa.table({**columns, "request_id": work.request_ids, "extra": work.extras}, schema=REQUESTED_SAMPLES)


def _encoded(pixels: NDArray[np.uint8]) -> bytes | str:
    """PNG bytes, or what the encoder complained about at the last attempt."""
    complaint = ""
    for _ in range(ATTEMPTS):
        try:
            return encode_png(pixels)
        except (ValueError, OSError, MemoryError) as error:
            complaint = f"encoder: {error or type(error).__name__}"
    return complaint
