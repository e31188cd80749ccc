"""Progressive generation, shared latents and interpolation (Ho et al. 2020, figures 6 to 8).

    progressive    predicted x_0 after more and more sampling steps (figure 6)
    shared         one x_t, decoded several times with different noise (figure 7)
    interpolate    between the x_t of two samples, decoded with the same noise (figure 8)

x_t is the state before the step at timestep index t; at the largest index it is x_T, pure noise. Interpolation is
spherical: a straight line between two Gaussian states has too little variance in the middle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.objective import Denoiser
from pipeline.errors import ConfigError, DataError
from pipeline.generation.generator import plan_denoiser, plan_noise, plan_sampler
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.images.convert import to_uint8
from pipeline.models.unet import UNet

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ExploreResult:
    """The table of one mode, and its sheet of pictures: cells, uint8 [rows * columns, H, W, C], row by row.

    chosen: the step count or reverse time of each column. feature_dim: of the extractor, 0 without one.
    """

    table: pa.Table
    cells: Pixels
    columns: int
    chosen: tuple[int, ...] = ()
    feature_dim: int = 0


def cells_by_row(columns: Sequence[Pixels]) -> Pixels:
    """Columns of images [rows, H, W, C] -> [rows * columns, H, W, C], row by row."""
    cells = np.stack(columns, axis=1)
    return cells.reshape(-1, *cells.shape[2:])


@dataclass(frozen=True)
class Picture:
    """One cell of a sheet. t: the last timestep index passed (progressive), or the one where decoding began.

    other_id, share: of an interpolation from sample_id (0) to other_id (1). noise_id: sample whose noise follows t.
    """

    row: int
    column: int
    pixels: Pixels  # [H, W, C]
    sample_id: int
    t: int
    label: int | None
    other_id: int | None = None
    share: float | None = None
    noise_id: int | None = None


@dataclass(frozen=True)
class _NoiseFrom:
    """A NoiseSource that starts at a given x_t."""

    x_t: Tensor
    noise: SampleNoise

    def initial(self) -> Tensor:
        return self.x_t

    def at(self, step: int) -> Tensor:
        return self.noise.at(step)


class Explorer:
    """Makes the figures of one network and plan; each call computes its pictures as one batch."""

    def __init__(self, model: UNet, plan: SamplePlan, device: torch.device) -> None:
        self._model, self._plan, self._device = model.to(device).eval(), plan, device
        self._timesteps = sorted(plan_sampler(plan).timesteps)

    def steps_done(self, columns: int) -> list[int]:
        """Step counts to show: at most `columns`, evenly spaced, the last one is all steps."""
        steps = len(self._timesteps)
        return sorted({round((i + 1) * steps / columns) for i in range(columns)} - {0})

    @torch.inference_mode()
    def previews(self, ids: Sequence[int], columns: int) -> list[tuple[int, Pixels]]:
        """Timestep index and predicted x_0 [N, H, W, C] after the steps in `steps_done`; the last one is the sample."""
        steps, chosen = len(self._timesteps), [done - 1 for done in self.steps_done(columns)]
        states = plan_sampler(self._plan).run(self._denoiser(ids), self._noise(ids))
        return [(s.t, _pixels(s.x_t if s.step == steps - 1 else s.x_0)) for s in states if s.step in chosen]

    def progressive(self, ids: Sequence[int], columns: int) -> list[Picture]:
        """One row per sample, one column per preview."""
        previews = self.previews(ids, columns)
        return [
            Picture(row, column, pixels[row], sample_id, t, label)
            for row, (sample_id, label) in enumerate(zip(ids, self._labels(ids), strict=True))
            for column, (t, pixels) in enumerate(previews)
        ]

    @torch.inference_mode()
    def shared(self, sample_id: int, columns: int, rows: int) -> list[Picture]:
        """One row per timestep, from x_T downwards. Column k has the noise of sample_id + k; column 0 is the sample.

        Raises ConfigError for a sampler that adds no noise, because all columns would be equal.
        """
        plan = self._plan
        if plan.sampler not in ("ddpm", "dpm++2m-sde") and not (plan.sampler == "ddim" and plan.eta > 0):
            raise ConfigError(
                f"sampler {plan.sampler!r} adds no noise between steps: use ddpm, or ddim with generate.eta"
            )
        others = [sample_id + k for k in range(columns)]
        label = self._labels([sample_id])[0]

        def start(index: int) -> Tensor:
            return self._state([sample_id], index).expand(columns, -1, -1, -1)

        cells = self._cells(rows, start, [sample_id] * columns, others)
        return [Picture(row, k, pixels, sample_id, t, label, noise_id=others[k]) for row, k, t, pixels in cells]

    @torch.inference_mode()
    def interpolate(self, first: int, second: int, columns: int, rows: int) -> list[Picture]:
        """One row per timestep, from x_T downwards: first sample to second sample, with the noise of the first.

        The label is that of the nearer sample. With a deterministic sampler the end columns are the two samples.
        """
        shares = [column / (columns - 1) for column in range(columns)]
        nearer = [first if share < 0.5 else second for share in shares]
        labels = self._labels(nearer)

        def start(index: int) -> Tensor:
            ends = self._state([first, second], index)
            return torch.cat([_between(ends[:1], ends[1:], share) for share in shares])

        cells = self._cells(rows, start, nearer, [first] * columns)
        return [
            Picture(row, k, pixels, first, t, labels[k], other_id=second, share=shares[k], noise_id=first)
            for row, k, t, pixels in cells
        ]

    def _cells(
        self, rows: int, start: Callable[[int], Tensor], label_ids: Sequence[int], noise_ids: Sequence[int]
    ) -> Iterator[tuple[int, int, int, Pixels]]:
        """(row, column, t, pixels): each row takes the x_t of start(index) through the remaining sampling steps."""
        denoiser, noise = self._denoiser(label_ids), self._noise(noise_ids)
        for row in range(rows):
            index = round((len(self._timesteps) - 1) * (1.0 - row / rows))
            sampler = plan_sampler(self._plan, steps=self._timesteps[: index + 1])
            *_, last = sampler.run(denoiser, _NoiseFrom(start(index), noise))
            for column, pixels in enumerate(_pixels(last.x_t)):
                yield row, column, self._timesteps[index], pixels

    def _state(self, ids: Sequence[int], index: int) -> Tensor:
        """x_t of samples `ids` before the step at the index-th smallest timestep: float32 [len(ids), C, H, W]."""
        noise = self._noise(ids)
        before = len(self._timesteps) - 1 - index
        if before == 0:
            return noise.initial()
        for state in plan_sampler(self._plan).run(self._denoiser(ids), noise):
            if state.step == before - 1:
                return state.x_t
        raise AssertionError("a sampler takes as many steps as it has timesteps")

    def _noise(self, ids: Sequence[int]) -> SampleNoise:
        return plan_noise(self._plan, torch.tensor(list(ids), device=self._device))

    def _labels(self, ids: Sequence[int]) -> list[int | None]:
        found = (PlannedSamples(self._plan).specs(range(i, i + 1)).labels for i in ids)
        return [None if labels is None else int(labels[0]) for labels in found]

    def _denoiser(self, ids: Sequence[int]) -> Denoiser:
        labels = [label for label in self._labels(ids) if label is not None]
        given = torch.tensor(labels, device=self._device) if labels else None
        return plan_denoiser(self._model, self._plan, given, self._plan.guidance)


def _between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation at `share` of the way; float32."""
    if share in (0.0, 1.0):
        return second if share else first
    angle = torch.arccos((first * second).sum().div(first.norm() * second.norm()).clamp(-1.0, 1.0))
    if angle.sin() < 1e-4:  # equal or opposite directions: no unique great circle
        return torch.lerp(first, second, share)
    return (first * torch.sin((1.0 - share) * angle) + second * torch.sin(share * angle)) / torch.sin(angle)


def _pixels(x_0: Tensor) -> Pixels:
    """uint8 [N, H, W, C]. Raises DataError for NaN and infinity."""
    if not bool(x_0.isfinite().all()):
        raise DataError("the network gave NaN or infinity")
    return to_uint8(x_0)
