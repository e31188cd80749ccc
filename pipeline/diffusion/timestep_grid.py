"""Shared base of the samplers: visited timesteps, p_theta on them, and the states that a sampler yields."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.diffusion.forward_process import Prediction, Process
from pipeline.diffusion.objective import Denoiser
from pipeline.diffusion.reverse_process import Clip, Gaussian, Reverse, Variance
from pipeline.diffusion.schedule import Schedule, respace


class NoiseSource(Protocol):
    """Source of a sampler's noise; `noise.SampleNoise` implements it."""

    def initial(self) -> Tensor:
        """x_T, [B, C, H, W]."""

    def at(self, step: int) -> Tensor:
        """Standard normals of the step from timestep index `step`, shaped like `initial()`; a pure function."""


@dataclass(frozen=True)
class State:
    """The result of step number `step` (0, 1, ...) from timestep index `t`: the next x_t and the x_0 predicted at t."""

    step: int
    t: int
    x_t: Tensor
    x_0: Tensor


class Sampler(Protocol):
    """A sampling algorithm as a generator of states; x_t of the last state is the sample."""

    @property
    def timesteps(self) -> list[int]:
        """Timestep indices in the order visited, descending."""

    def run(self, denoiser: Denoiser, noise: NoiseSource) -> Iterator[State]:
        """Yield one State a step."""


class Grid:
    """A process respaced to S timesteps, and p_theta on it. Index i = 0..S-1 counts the kept timesteps upwards."""

    def __init__(
        self,
        schedule: Schedule,
        timesteps: Sequence[int],
        prediction: Prediction,
        variance: Variance,
        clip: Clip | None,
    ) -> None:
        self.schedule = respace(schedule, timesteps)
        self.process = Process(self.schedule)
        self.reverse = Reverse(self.process, prediction, variance)
        self.clip = clip
        self._t: list[int] = self.schedule.timesteps.tolist()
        # (sqrt(alpha_bar), sqrt(1 - alpha_bar)) at index -1 (the data itself), 0, ..., S-1.
        alpha_bars = [1.0, *self.schedule.alpha_bars.tolist()]
        self._levels = [(math.sqrt(a), math.sqrt(1.0 - a)) for a in alpha_bars]

    @property
    def timesteps(self) -> list[int]:
        return self._t[::-1]

    def walk(self) -> Iterator[tuple[int, int, int]]:
        """(step, index i, timestep t) from noise to data."""
        for step, i in enumerate(reversed(range(len(self._t)))):
            yield step, i, self._t[i]

    def level(self, i: int) -> tuple[float, float]:
        """Signal and noise scale of x at index i: sqrt(alpha_bar), sqrt(1 - alpha_bar); (1, 0) at i = -1."""
        return self._levels[i + 1]

    def predict(self, denoiser: Denoiser, x_t: Tensor, i: int) -> Gaussian:
        """p_theta at index i. The network gets the original timestep; tables are indexed by i."""
        batch = x_t.shape[0]
        out = denoiser(x_t, torch.full((batch,), self._t[i], device=x_t.device))
        return self.reverse(out, x_t, self.index(x_t, i), self.clip)

    def eps(self, x_0: Tensor, x_t: Tensor, i: int) -> Tensor:
        """The eps implied by x_t and this (possibly clipped) x_0."""
        return self.process.to_eps("x_0", x_0, x_t, self.index(x_t, i))

    def index(self, x_t: Tensor, i: int) -> Tensor:
        """i for every row, int64 [B]."""
        return torch.full((x_t.shape[0],), i, device=x_t.device)
