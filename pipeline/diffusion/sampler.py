"""From settings to a sampler."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from pipeline.config import DiffusionConfig
from pipeline.diffusion.ancestral import Ancestral
from pipeline.diffusion.ddim import Ddim
from pipeline.diffusion.grid import Grid, NoiseSource, Sampler, State
from pipeline.diffusion.reverse import Variance
from pipeline.diffusion.schedule import evenly_spaced, make_schedule

__all__ = ["NoiseSource", "Sampler", "SamplerName", "State", "make_sampler"]

SamplerName = Literal["ddpm", "ddim"]


def _to_unit_range(x_0: Tensor) -> Tensor:
    return x_0.clamp(-1.0, 1.0)


def make_sampler(
    diffusion: DiffusionConfig,
    name: SamplerName,
    steps: int | Sequence[int] | None,
    eta: float,
    variance: Variance | None,
    clip: bool,
) -> Sampler:
    """A sampler for a network trained with `diffusion`.

    steps: how many (evenly spaced, see `schedule.evenly_spaced`), or the ascending timestep indices themselves, or
    None for all; eta: DDIM only; variance: DDPM only, None as trained; clip: predicted x_0 to [-1, 1].
    Raises ValueError for steps outside the process.
    """
    schedule = make_schedule(diffusion)
    if steps is None:
        steps = schedule.num_timesteps
    timesteps = evenly_spaced(schedule.num_timesteps, steps) if isinstance(steps, int) else list(steps)
    grid = Grid(
        schedule, timesteps, diffusion.prediction, variance or diffusion.variance, _to_unit_range if clip else None
    )
    match name:
        case "ddpm":
            return Ancestral(grid)
        case "ddim":
            return Ddim(grid, eta)
