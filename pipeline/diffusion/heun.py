"""Heun's method on the probability-flow ODE: Karras et al. 2022 (EDM, arXiv 2206.00364), Algorithm 1.

In x / a, with a = sqrt(alpha_bar), against sigma = sqrt(1 - alpha_bar) / a, the ODE is d(x / a) / d sigma = eps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.grid import Grid, NoiseSource, State
from pipeline.diffusion.objective import Denoiser

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """Two network calls a step, one at the last. An Euler step is DDIM's; the correction averages both ends' eps."""

    grid: Grid

    @property
    def timesteps(self) -> list[int]:
        return self.grid.timesteps

    def run(self, denoiser: Denoiser, noise: NoiseSource) -> Iterator[State]:
        x_t = noise.initial()
        for step, i, t in self.grid.walk():
            x_t, x_0 = self._step(denoiser, x_t, i)
            yield State(step, t, x_t, x_0)

    @torch.no_grad()
    def _step(self, denoiser: Denoiser, x_t: Tensor, i: int) -> tuple[Tensor, Tensor]:
        x_0 = self.grid.predict(denoiser, x_t, i).x_0
        eps = self.grid.eps(x_0, x_t, i)
        (a, s), (a_prev, s_prev) = self.grid.level(i), self.grid.level(i - 1)
        euler = a_prev * x_0 + s_prev * eps
        if i == 0 or a == 0.0:  # no eps at the data; sigma is infinite at zero SNR
            return euler, x_0
        ahead = self.grid.predict(denoiser, euler, i - 1).x_0
        turn = self.grid.eps(ahead, euler, i - 1) - eps
        return euler + 0.5 * (s_prev - a_prev * s / a) * turn, x_0
