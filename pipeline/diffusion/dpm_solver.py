"""DPM-Solver++ (2M) and its SDE form: Lu et al. 2022 (arXiv 2211.01095), Algorithm 2.

With signal a and noise s at a timestep, lambda = log(a / s) is half the log-SNR and h the rise in lambda over a step.
The solution of the probability-flow ODE is exact for a given x_0; x_0 is extrapolated linearly in lambda from the last
two predictions (a multistep method: one network call a step).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.objective import Denoiser
from pipeline.diffusion.timestep_grid import Grid, NoiseSource, State


@dataclass(frozen=True)
class DpmSolver2M:
    """First order at the first step (only one prediction so far) and at the last (lambda is infinite at the data)."""

    grid: Grid
    stochastic: bool

    @property
    def timesteps(self) -> list[int]:
        return self.grid.timesteps

    def run(self, denoiser: Denoiser, noise: NoiseSource) -> Iterator[State]:
        x_t = noise.initial()
        x_0_before: Tensor | None = None
        for step, i, t in self.grid.walk():
            with torch.no_grad():
                x_0 = self.grid.predict(denoiser, x_t, i).x_0
                towards = x_0 if x_0_before is None or i == 0 else x_0 + self._slope(i) * (x_0 - x_0_before)
                x_t = self._step(x_t, towards, i, noise.at(t) if self.stochastic and i > 0 else None)
            x_0_before = x_0
            yield State(step, t, x_t, x_0)

    def _rise(self, i: int) -> float:
        """h over the step that leaves index i; infinite into the data and out of zero SNR."""
        (a, s), (a_prev, s_prev) = self.grid.level(i), self.grid.level(i - 1)
        return math.inf if a == 0.0 or s_prev == 0.0 else math.log(a_prev * s / (s_prev * a))

    def _slope(self, i: int) -> float:
        """1 / (2 r), r = the last step's h / this one's."""
        return self._rise(i) / (2.0 * self._rise(i + 1))

    def _step(self, x_t: Tensor, x_0: Tensor, i: int, z: Tensor | None) -> Tensor:
        """The exact solution of the ODE, or of the SDE given its noise z, with x_0 held over the step."""
        _, s = self.grid.level(i)
        a_prev, s_prev = self.grid.level(i - 1)
        decay = math.exp(-self._rise(i))
        if z is None:
            return (s_prev / s) * x_t + a_prev * (1.0 - decay) * x_0
        fresh = 1.0 - decay**2
        return (s_prev / s) * decay * x_t + a_prev * fresh * x_0 + s_prev * math.sqrt(fresh) * z
