"""Likelihood bound in bits per dimension, and rate-distortion. Ho et al. 2020, Eq. 5 and section 4.3."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.clipping import clip_to_unit
from pipeline.diffusion.objective import Denoiser, Objective
from pipeline.diffusion.timestep_grid import NoiseSource
from pipeline.diffusion.variational_bound import bound_term, prior_term

_GREY_LEVELS_PER_UNIT = 127.5  # [-1, 1] -> [0, 255]


@dataclass(frozen=True)
class Likelihood:
    """The terms of an upper bound on -log2 p(x_0) per dimension; all float64 on the CPU."""

    terms: Tensor  # [B, T], bits/dim: L_0 at code t = 0, else L_{t-1} of the paper
    prior: Tensor  # [B], bits/dim: L_T
    x_0_mse: Tensor  # [B, T]: mean squared error of the x_0 predicted at t, clipped to [-1, 1]

    @property
    def total(self) -> Tensor:
        """[B], bits/dim; lower is better."""
        return self.terms.sum(1) + self.prior


@dataclass(frozen=True)
class RatePoint:
    """A receiver that holds x_t: `rate` bits/dim received, `distortion` RMSE of its predicted x_0 in levels 0..255."""

    t: int
    rate: float
    distortion: float


@torch.no_grad()
def bits_per_dim(objective: Objective, denoiser: Denoiser, x_0: Tensor, noise: NoiseSource) -> Likelihood:
    """Every term of the bound with one noise draw each, in T network calls.

    x_0 [B, C, H, W] on the grey levels k / 127.5 - 1; `noise.at(t)` is the noise of q(x_t | x_0). For any training
    objective, the bound is that of `objective.reverse` without clipping. Only the x_0 of `x_0_mse` is clipped: a
    receiver knows that images lie in [-1, 1].
    """
    terms, errors = [], []
    for step in range(objective.process.schedule.num_timesteps):
        t = torch.full((x_0.shape[0],), step, device=x_0.device)
        x_t = objective.process.q_sample(x_0, t, noise.at(step))
        p = objective.reverse(denoiser(x_t, t), x_t, t)
        terms.append(bound_term(objective.process, p, x_0, x_t, t))
        errors.append((clip_to_unit(p.x_0) - x_0).square().flatten(1).mean(1))
    prior = prior_term(objective.process, x_0)
    return Likelihood(*(part.double().cpu() for part in (torch.stack(terms, 1), prior, torch.stack(errors, 1))))


def rate_distortion(likelihoods: Sequence[Likelihood]) -> list[RatePoint]:
    """Figure 5 of Ho et al. 2020: means over all images, from t = T-1 (only L_T sent) to t = 0 (all but L_0 sent)."""
    terms = torch.cat([part.terms for part in likelihoods]).mean(0)
    prior = torch.cat([part.prior for part in likelihoods]).mean()
    mse = torch.cat([part.x_0_mse for part in likelihoods]).mean(0)
    # A receiver that holds x_t has received L_T and the terms at code T-1..t+1.
    sent = prior + terms.flip(0).cumsum(0).flip(0) - terms
    rmse = _GREY_LEVELS_PER_UNIT * mse.sqrt()
    return [RatePoint(t, sent[t].item(), rmse[t].item()) for t in reversed(range(len(terms)))]
