"""DDIM: Song, Meng & Ermon 2021 (arXiv 2010.02502), Eq. 12 and 16."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.objective import Denoiser
from pipeline.diffusion.timestep_grid import Grid, NoiseSource, State


@dataclass(frozen=True)
class Ddim:
    """x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma^2) eps + sigma z.

    sigma = eta sqrt(beta_tilde_t): eta = 0 is deterministic, eta = 1 is ancestral sampling with fixed_small.
    eps is recomputed from x_t and the clipped x_0, so clipping changes both terms.
    """

    grid: Grid
    eta: float

    @property
    def timesteps(self) -> list[int]:
        return self.grid.timesteps

    def run(self, denoiser: Denoiser, noise: NoiseSource) -> Iterator[State]:
        x_t = noise.initial()
        for step, i, t in self.grid.walk():
            x_t, x_0 = self._step(denoiser, x_t, i, noise.at(t) if i > 0 and self.eta > 0 else None)
            yield State(step, t, x_t, x_0)

    @torch.no_grad()
    def _step(self, denoiser: Denoiser, x_t: Tensor, i: int, z: Tensor | None) -> tuple[Tensor, Tensor]:
        x_0 = self.grid.predict(denoiser, x_t, i).x_0
        eps = self.grid.eps(x_0, x_t, i)
        signal, noise = self.grid.level(i - 1)
        sigma = self.eta * math.sqrt(self.grid.schedule.posterior_variance[i].item())
        x_prev = signal * x_0 + math.sqrt(noise**2 - sigma**2) * eps  # eta <= 1: not negative
        return (x_prev if z is None else x_prev + sigma * z), x_0
