"""Builds a sampler from generation settings."""

from collections.abc import Sequence

from pipeline.config.generation import SamplerName
from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.ancestral import Ancestral
from pipeline.diffusion.clipping import DynamicThreshold, clip_to_unit
from pipeline.diffusion.ddim import Ddim
from pipeline.diffusion.dpm_solver import DpmSolver2M
from pipeline.diffusion.heun import Heun
from pipeline.diffusion.reverse_process import Clip, Variance
from pipeline.diffusion.schedule import evenly_spaced, make_schedule
from pipeline.diffusion.timestep_grid import Grid, Sampler
from pipeline.errors import ConfigError


def _clip(clip: bool | float) -> Clip | None:
    if isinstance(clip, bool):
        return clip_to_unit if clip else None
    if not 0.0 < clip <= 1.0:
        raise ConfigError(f"clip: a dynamic threshold is a quantile in (0, 1], got {clip}")
    return DynamicThreshold(clip)


def _variance(diffusion: DiffusionConfig, override: Variance | None) -> Variance:
    if override is None or override == diffusion.variance:
        return diffusion.variance
    if override in ("learned", "learned_range"):
        raise ConfigError(f"variance: '{override}' was not learned; this model was trained with '{diffusion.variance}'")
    return override


def _timesteps(num_timesteps: int, steps: int | Sequence[int] | None) -> list[int]:
    if steps is None:
        return list(range(num_timesteps))
    return evenly_spaced(num_timesteps, steps) if isinstance(steps, int) else list(steps)


def make_sampler(
    diffusion: DiffusionConfig,
    name: SamplerName,
    steps: int | Sequence[int] | None,
    eta: float,
    variance: Variance | None,
    clip: bool | float,
) -> Sampler:
    """A sampler for a network trained with `diffusion`.

    steps: a number of evenly spaced timesteps (`schedule.evenly_spaced`), ascending timestep indices, or None for all.
    eta: "ddim" only. variance: "ddpm" only; None is the variance of training, and a fixed variance may replace a
    learned one. clip: True clips the predicted x_0 to [-1, 1], False does not, a float is the quantile of
    `clipping.DynamicThreshold`. Raises ConfigError for steps outside the process, eta outside [0, 1], and a learned
    variance that the model was not trained with.
    """
    schedule = make_schedule(diffusion)
    timesteps = _timesteps(schedule.num_timesteps, steps)
    grid = Grid(schedule, timesteps, diffusion.prediction, _variance(diffusion, variance), _clip(clip))
    match name:
        case "ddpm":
            return Ancestral(grid)
        case "ddim":
            if not 0.0 <= eta <= 1.0:
                raise ConfigError(f"eta: must lie in [0, 1], got {eta}")
            return Ddim(grid, eta)
        case "dpm++2m":
            return DpmSolver2M(grid, stochastic=False)
        case "dpm++2m-sde":
            return DpmSolver2M(grid, stochastic=True)
        case "heun":
            return Heun(grid)
