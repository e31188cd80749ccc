"""Sampling: a network and a plan make images. The bytes of a sample depend only on the plan and the sample's id.

A shard is cut into batches of one fixed size, starting at its first id; the last batch is padded. So a sample always
has the same tensor shapes and the same place in its batch, on every actor. Noise depends only on (seed, id).
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.guidance import guided_by_label
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Denoiser, Objective
from pipeline.diffusion.sampler import make_sampler
from pipeline.diffusion.timestep_grid import Sampler
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.requests import Requests
from pipeline.generation.sample_plan import PlannedSamples, SampleSpecs
from pipeline.images.convert import to_uint8
from pipeline.images.png import encode_png
from pipeline.models.unet import UNet
from pipeline.schema import IMAGE, REQUESTED_SAMPLES, SAMPLES, STATUS_FAILED, STATUS_OK

NOT_FINITE = "the network gave NaN or infinity, twice"

ATTEMPTS = 2
"""Tries per sample. The second helps when a transient fault spoiled the first."""


@dataclass(frozen=True)
class SamplingProgress:
    """State after a sampling step. done: finished images of the shard. pixels: of a batch that this step finished."""

    done: int
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class GeneratedImages:
    """pixels uint8 [N, H, W, C]; finite bool [N], False where the network gave NaN or infinity (pixels are 0)."""

    specs: SampleSpecs
    pixels: NDArray[np.uint8]
    finite: NDArray[np.bool_]


def plan_sampler(plan: SamplePlan, name: str | None = None, steps: int | Sequence[int] | None = None) -> Sampler:
    """The plan's sampler, or another one on the plan's diffusion process.

    steps: a number, or the ascending timestep indices. Raises ConfigError for a sampler that does not exist.
    """
    variance = plan.variance if plan.variance in ("fixed_small", "fixed_large") else None
    diffusion = DiffusionConfig.model_validate(plan.diffusion)
    name, steps = name or plan.sampler, steps or plan.steps
    return make_sampler(diffusion, name, steps, plan.eta, variance, plan.clip)  # type: ignore[arg-type]


def plan_denoiser(
    model: Callable[..., Tensor], plan: SamplePlan, labels: Tensor | None, guidance: float | None
) -> Denoiser:
    """The network bound to labels (int64 [B], None: no classes). guidance: scale in the plan's interval, or None."""

    def predict(x_t: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        return model(x_t, t[:1], given)  # one t for the whole batch

    if labels is None or plan.num_classes is None or guidance is None:
        return lambda x_t, t: predict(x_t, t, labels)
    null_labels = torch.full_like(labels, plan.num_classes)
    return guided_by_label(predict, labels, null_labels, guidance, plan.guidance_interval)


def plan_noise(plan: SamplePlan, ids: Tensor, seed: int | tuple[int, ...] | None = None) -> SampleNoise:
    """The noise of samples `ids`, int64 [B]. seed: one, or one a row; default the plan's."""
    return SampleNoise(plan.seed if seed is None else seed, ids, (plan.channels, plan.image_size, plan.image_size))


def network_evaluations(plan: SamplePlan) -> int:
    """Images that pass through the network to make one sample, counted by sampling one pixel with a stub network.

    Heun's two calls a step count twice, and so does a guided step. Raises ConfigError as `plan_sampler` does.
    """
    evaluations = 0
    out_channels = Objective(DiffusionConfig.model_validate(plan.diffusion), plan.channels).out_channels

    def network(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal evaluations
        evaluations += len(x_t)
        return torch.zeros(len(x_t), out_channels, 1, 1)

    first = torch.zeros(1, dtype=torch.int64)
    denoiser = plan_denoiser(network, plan, None if plan.num_classes is None else first, plan.guidance)
    for _ in plan_sampler(plan).run(denoiser, SampleNoise(plan.seed, first, (plan.channels, 1, 1))):
        pass
    return evaluations


class ShardGenerator:
    """Makes shards of one plan with one network, in this process and on one device."""

    def __init__(self, model: UNet, plan: SamplePlan, device: torch.device, requests: Requests | None = None) -> None:
        self.plan = plan
        self.device = device
        self._model: nn.Module = model.to(device).eval()
        if plan.compile:
            # Shapes are fixed, and all actors of a node share inductor's disk cache.
            self._model.compile(dynamic=False)
        self._planned = PlannedSamples(plan, requests)
        self._sampler = cache(partial(plan_sampler, plan))

    def shard(self, ids: range) -> GeneratedImages:
        """The images of `ids`, which must start at the first id of a shard."""
        return next(step for step in self.steps(ids) if isinstance(step, GeneratedImages))

    @torch.inference_mode()
    def steps(self, ids: range) -> Iterator[SamplingProgress | GeneratedImages]:
        """As `shard`, but also yields after every sampling step and every batch; the images come last."""
        size = self.plan.batch_size
        pixels: list[NDArray[np.uint8]] = []
        finite: list[NDArray[np.bool_]] = []
        for start in range(0, len(ids), size):
            x_0 = yield from self._samples(self._planned.specs(ids[start : start + size]), start)
            good = x_0.isfinite().flatten(1).all(1)
            pixels.append(to_uint8(torch.where(good[:, None, None, None], x_0, -1.0)))
            finite.append(good.cpu().numpy())
            yield SamplingProgress(start + len(pixels[-1]), pixels[-1])
        yield GeneratedImages(self._planned.specs(ids), np.concatenate(pixels), np.concatenate(finite))

    def _samples(self, specs: SampleSpecs, done: int) -> Generator[SamplingProgress, None, Tensor]:
        """float32 [N, C, H, W]; rows that are not finite at the first attempt come from the second."""
        x_0 = yield from self._attempt(specs, done)
        for _ in range(ATTEMPTS - 1):
            bad = ~x_0.isfinite().flatten(1).all(1)
            if not bad.any():
                break
            again = yield from self._attempt(specs, done)
            x_0 = torch.where(bad[:, None, None, None], again, x_0)
        return x_0

    def _attempt(self, specs: SampleSpecs, done: int) -> Generator[SamplingProgress, None, Tensor]:
        plan, size = self.plan, self.plan.batch_size
        ids = _padded(np.arange(specs.ids.start, specs.ids.stop), size)
        seeds = _padded(specs.seeds, size).tolist()
        labels = None if specs.labels is None else torch.from_numpy(_padded(specs.labels, size)).to(self.device)
        seed = seeds[0] if len(set(seeds)) == 1 else tuple(seeds)
        noise = plan_noise(plan, torch.from_numpy(ids).to(self.device), seed)
        denoiser = plan_denoiser(self._model, plan, labels, specs.guidance)
        x_0 = torch.empty(0)
        for state in self._sampler(specs.sampler, specs.steps).run(denoiser, noise):
            x_0 = state.x_t
            yield SamplingProgress(done)
        return x_0[: len(specs.ids)]


def _padded(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """int64 [size]: pads with the last value, so that every forward pass has the same shape."""
    return np.concatenate([values, np.full(size - len(values), values[-1])])


def sample_table(plan: SamplePlan, images: GeneratedImages) -> pa.Table:
    """The rows of a shard (SAMPLES or REQUESTED_SAMPLES). A failed sample has status and error, and no image."""
    encoded = [_encoded(p) if ok else NOT_FINITE for p, ok in zip(images.pixels, images.finite, strict=True)]
    pngs = [png if isinstance(png, bytes) else None for png in encoded]
    columns = {
        **images.specs.columns(plan),
        "sample_id": images.specs.ids,
        "image": pa.array([None if png is None else {"bytes": png, "path": None} for png in pngs], IMAGE),
        "sha256": [None if png is None else hashlib.sha256(png).hexdigest() for png in pngs],
        "status": [STATUS_FAILED if png is None else STATUS_OK for png in pngs],
        "error": [None if isinstance(error, bytes) else error for error in encoded],
    }
    schema = SAMPLES if images.specs.request_ids is None else REQUESTED_SAMPLES
    return pa.table(columns, schema=schema)


def _encoded(pixels: NDArray[np.uint8]) -> bytes | str:
    """PNG bytes, or the error text of the last attempt."""
    message = ""
    for _ in range(ATTEMPTS):
        try:
            return encode_png(pixels)
        except (ValueError, OSError, MemoryError) as error:
            message = f"encoder: {error or type(error).__name__}"
    return message
