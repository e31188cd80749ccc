"""Progressive lossy coding: rate and distortion of held-out images (Ho et al. 2020, section 4.3)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.analysis.figures import ExploreResult, Pixels, cells_by_row
from pipeline.analysis.held_out_images import read_held_out_images
from pipeline.config.generation import ExploreConfig
from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.clipping import clip_to_unit
from pipeline.diffusion.likelihood import Likelihood, bits_per_dim, rate_distortion
from pipeline.diffusion.objective import Denoiser, Objective
from pipeline.errors import DataError
from pipeline.generation.generator import plan_denoiser, plan_noise
from pipeline.generation.manifest import SamplePlan
from pipeline.images.convert import to_model, to_uint8
from pipeline.models.unet import UNet
from pipeline.progress import Progress
from pipeline.schema import RATE_DISTORTION
from pipeline.storage.store import Store


class RateDistortion(NamedTuple):
    """Per timestep index T-1, ..., 0, float64 [T] each: bits/dim sent before, RMSE in grey levels, bits/dim added."""

    rate: NDArray[np.float64]
    distortion: NDArray[np.float64]
    term: NDArray[np.float64]


class ProgressiveCoder:
    """A network as a progressive code: the receiver of x_t predicts x_0."""

    def __init__(self, model: UNet, plan: SamplePlan, device: torch.device) -> None:
        self._model, self._plan, self._device = model.to(device).eval(), plan, device
        self._objective = Objective(DiffusionConfig.model_validate(plan.diffusion), plan.channels)

    def code(
        self,
        images: Pixels,
        ids: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        batch: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> RateDistortion:
        """Means over images uint8 [N, H, W, C]; the noise of a row depends on (plan's seed, id) alone.

        T network calls a batch. labels int64 [N] for a class-conditional model. Raises DataError for NaN and infinity.
        """
        parts: list[Likelihood] = []
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            denoiser = self._denoiser(None if labels is None else labels[rows])
            x_0 = to_model(images[rows]).to(self._device)
            noise = plan_noise(self._plan, torch.tensor(ids[rows], device=self._device))
            parts.append(bits_per_dim(self._objective, denoiser, x_0, noise))
            on_batch(min(start + batch, len(images)))
        terms = torch.cat([part.terms for part in parts]).mean(0)
        if not bool(terms.isfinite().all()):
            raise DataError("the network gave NaN or infinity")
        points = rate_distortion(parts)
        rate, distortion = ([getattr(point, name) for point in points] for name in ("rate", "distortion"))
        return RateDistortion(np.array(rate), np.array(distortion), terms.flip(0).numpy())

    @torch.inference_mode()
    def guesses(
        self, images: Pixels, ids: NDArray[np.int64], labels: NDArray[np.int64] | None, timesteps: Sequence[int]
    ) -> list[Pixels]:
        """x_0 as predicted from the x_t of each timestep index, clipped: uint8 [N, H, W, C] each."""
        x_0, denoiser = to_model(images).to(self._device), self._denoiser(labels)
        noise = plan_noise(self._plan, torch.tensor(ids, device=self._device))
        guesses = []
        for step in timesteps:
            t = torch.full((len(x_0),), step, device=self._device)
            x_t = self._objective.process.q_sample(x_0, t, noise.at(step))
            guesses.append(to_uint8(self._objective.reverse(denoiser(x_t, t), x_t, t, clip_to_unit).x_0))
        return guesses

    def _denoiser(self, labels: NDArray[np.int64] | None) -> Denoiser:
        given = None if labels is None else torch.tensor(labels, device=self._device)
        return plan_denoiser(self._model, self._plan, given, None)


def measure_rate_distortion(
    unet: UNet, plan: SamplePlan, dataset: Store, settings: ExploreConfig, device: torch.device
) -> ExploreResult:
    """Of the first `num_images` held-out images. Raises DataError."""
    images, coder = read_held_out_images(dataset, plan, settings.num_images), ProgressiveCoder(unet, plan, device)
    progress = Progress("coding", len(images.ids), "img")
    coded = coder.code(images.pixels, images.ids, images.labels, plan.batch_size, progress.update)
    progress.close()
    T = len(coded.rate)
    columns = {
        "t": np.arange(T - 1, -1, -1),
        "reverse_time": np.arange(1, T + 1),
        **coded._asdict(),
        "images": [len(images.ids)] * T,
    }
    table = pa.table(columns, schema=RATE_DISTORTION)
    chosen = sorted({1, *(round((i + 1) * T / settings.columns) for i in range(settings.columns))} - {0})
    first, ids = images.pixels[: settings.rows], images.ids[: settings.rows]
    labels = None if images.labels is None else images.labels[: settings.rows]
    sheet = [*coder.guesses(first, ids, labels, [T - time for time in chosen]), first]
    return ExploreResult(table, cells_by_row(sheet), len(sheet), tuple(chosen))
