"""Ancestral sampling: Ho et al. 2020, Algorithm 2, on all timesteps or on a subset (Nichol & Dhariwal 2021, Eq. 19)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.objective import Denoiser
from pipeline.diffusion.timestep_grid import Grid, NoiseSource, State


@dataclass(frozen=True)
class Ancestral:
    """x_{t-1} = mu_theta(x_t, t) + sigma_t z; the last step returns the mean (section 3.3)."""

    grid: Grid

    @property
    def timesteps(self) -> list[int]:
        return self.grid.timesteps

    def run(self, denoiser: Denoiser, noise: NoiseSource) -> Iterator[State]:
        x_t = noise.initial()
        for step, i, t in self.grid.walk():
            x_t, x_0 = self._step(denoiser, x_t, i, noise.at(t) if i > 0 else None)
            yield State(step, t, x_t, x_0)

    @torch.no_grad()
    def _step(self, denoiser: Denoiser, x_t: Tensor, i: int, z: Tensor | None) -> tuple[Tensor, Tensor]:
        p = self.grid.predict(denoiser, x_t, i)
        x_prev = p.mean if z is None else p.mean + (0.5 * p.log_variance).exp() * z
        return x_prev, p.x_0
