"""The terms of the variational bound, in bits per dimension. Equation numbers: Ho et al. 2020, arXiv 2006.11239."""

import math

import torch
from torch import Tensor

from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.reverse_process import Gaussian

_HALF_BIN = 1.0 / 255.0  # 256 grey levels on [-1, 1]: bins are 2 / 255 wide
_EDGE = 1.0 - 1e-3  # a larger |x_0| is level 0 or 255, also after rounding errors


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of diagonal Gaussians, elementwise, nats, >= 0; arguments broadcast."""
    ratio = log_variance_1 - log_variance_2
    return 0.5 * (ratio.exp() - 1.0 - ratio + (mean_1 - mean_2).square() * (-log_variance_2).exp())


def decoder_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log p_theta(x_0 | x_1) of Eq. 13, elementwise, nats, <= 0.

    x_0 holds grey levels k / 127.5 - 1. The Gaussian is integrated over the bin of x_0; the bins of levels 0 and 255
    extend to infinity. The computation uses the logarithm of the lower tail (an interval above the mean is reflected
    about the mean), so a value forty standard deviations off still has an exact logarithm and a gradient.
    """
    inverse_std = (-0.5 * log_variance).exp()
    half = _HALF_BIN * inverse_std
    offset = (x_0 - mean) * inverse_std
    centre = -offset.abs()
    upper, lower = torch.special.log_ndtr(centre + half), torch.special.log_ndtr(centre - half)
    # In a very narrow bin rounding makes upper = lower; the cap keeps the logarithm and its gradient finite.
    inner = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-7)))
    outer = torch.special.log_ndtr(half - offset * x_0.sign())
    return torch.where(x_0.abs() > _EDGE, outer, inner)


def _bits_per_dim(nats: Tensor) -> Tensor:
    """Mean over all but the first axis, nats -> bits; [B]."""
    return nats.flatten(1).mean(1) / math.log(2.0)


def bound_term(process: Process, p: Gaussian, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of Eq. 5 per sample, bits per dimension [B]: L_{t-1}, or L_0 where code t = 0."""
    mean, _, log_variance = process.q_posterior(x_0, x_t, t)
    kl = gaussian_kl(mean, log_variance, p.mean, p.log_variance)
    decoder = -decoder_log_likelihood(x_0, p.mean, p.log_variance)
    return torch.where(t == 0, _bits_per_dim(decoder), _bits_per_dim(kl))


def prior_term(process: Process, x_0: Tensor) -> Tensor:
    """L_T of Eq. 5 per sample, KL(q(x_T | x_0) || N(0, I)), bits per dimension [B]; it has no learned parameters."""
    last = torch.full((x_0.shape[0],), process.schedule.num_timesteps - 1, device=x_0.device)
    log_variance = 2.0 * process.at("noise", last, x_0).log()
    zero = torch.zeros_like(log_variance)
    return _bits_per_dim(gaussian_kl(process.at("signal", last, x_0) * x_0, log_variance, zero, zero))
