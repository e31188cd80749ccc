"""Noise schedules: betas and everything derived from them, float64 [T].

Index rule for the whole package: code t = 0..T-1 is the paper's t = 1..T. So `alpha_bars[t]` is the paper's
alpha_bar_{t+1}, and the paper's alpha_bar_0 = 1 appears only as `alpha_bars_prev[0]`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.model import DiffusionConfig
from pipeline.errors import ConfigError

_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: no singularity at t = T


@dataclass(frozen=True)
class Schedule:
    """Tables of a forward process, all float64 [T] on the CPU except `timesteps`. Equations: Ho et al. 2020."""

    timesteps: Tensor  # int64 [T]: index in the process the network was trained on (0..T-1 unless respaced)
    betas: Tensor  # variance of q(x_t | x_{t-1}), Eq. 2
    alphas: Tensor  # 1 - beta
    alpha_bars: Tensor  # product of alphas up to t, Eq. 4
    alpha_bars_prev: Tensor  # alpha_bar_{t-1}; 1 at t = 0
    posterior_variance: Tensor  # beta_tilde, Eq. 7; 0 at t = 0
    posterior_mean_coef_x0: Tensor  # coefficient of x_0 in mu_tilde, Eq. 7
    posterior_mean_coef_xt: Tensor  # coefficient of x_t in mu_tilde, Eq. 7
    log_variance_small: Tensor  # log beta_tilde; at t = 0, where beta_tilde = 0, the value of t = 1
    log_variance_large: Tensor  # log beta; at t = 0 the value of `log_variance_small`
    snr: Tensor  # alpha_bar / (1 - alpha_bar)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)


def schedule_from_betas(betas: Tensor, timesteps: Tensor | None = None) -> Schedule:
    """Derive every table from betas, float64 [T] in (0, 1]; only the last may be 1."""
    betas = betas.double()
    alphas = 1.0 - betas
    alpha_bars = alphas.cumprod(0)
    alpha_bars_prev = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
    posterior_variance = betas * (1.0 - alpha_bars_prev) / (1.0 - alpha_bars)
    # The paper's beta_tilde_1 = 0 has no logarithm: use the second value, or beta if the process has only one step.
    first = posterior_variance[1:2] if len(betas) > 1 else betas
    log_variance_small = torch.cat([first, posterior_variance[1:]]).log()
    return Schedule(
        timesteps=torch.arange(len(betas)) if timesteps is None else timesteps,
        betas=betas,
        alphas=alphas,
        alpha_bars=alpha_bars,
        alpha_bars_prev=alpha_bars_prev,
        posterior_variance=posterior_variance,
        posterior_mean_coef_x0=alpha_bars_prev.sqrt() * betas / (1.0 - alpha_bars),
        posterior_mean_coef_xt=alphas.sqrt() * (1.0 - alpha_bars_prev) / (1.0 - alpha_bars),
        log_variance_small=log_variance_small,
        log_variance_large=torch.cat([log_variance_small[:1], betas[1:].log()]),
        snr=alpha_bars / (1.0 - alpha_bars),
    )


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """alpha_bar, up to a constant factor, at the T + 1 points 0, 1/T, ..., 1 -> betas [T], capped."""
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)


def _cosine(num: int) -> Tensor:
    """Nichol & Dhariwal 2021, Eq. 17."""
    s = 0.008
    u = torch.arange(num + 1, dtype=torch.float64) / num
    return _betas_of(((u + s) / (1.0 + s) * (math.pi / 2)).cos() ** 2)


def _sigmoid(num: int) -> Tensor:
    """Jabri et al. 2022 (arXiv 2212.11972), Algorithm 5 with start = -3, end = 3, tau = 1."""
    falling = torch.linspace(3.0, -3.0, num + 1, dtype=torch.float64).sigmoid()
    return _betas_of(falling - falling[-1])


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2023 (arXiv 2305.08891), Algorithm 1: shift and stretch sqrt(alpha_bar) to end at exactly 0."""
    root = (1.0 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bars = root**2
    return 1.0 - torch.cat([alpha_bars[:1], alpha_bars[1:] / alpha_bars[:-1]])


def make_schedule(config: DiffusionConfig) -> Schedule:
    """The noise schedule of a DiffusionConfig."""
    num, start, end = config.num_timesteps, config.beta_start, config.beta_end
    match config.schedule:
        case "linear":
            betas = torch.linspace(start, end, num, dtype=torch.float64)
        case "quadratic":
            betas = torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64) ** 2
        case "cosine":
            betas = _cosine(num)
        case "sigmoid":
            betas = _sigmoid(num)
    return schedule_from_betas(_zero_terminal_snr(betas) if config.zero_terminal_snr else betas)


def evenly_spaced(num_timesteps: int, num: int) -> list[int]:
    """`num` of 0..T-1, ascending, evenly spaced and ending at T-1 ("trailing" in Lin et al. 2023, Table 2).

    The last index must be T-1: sampling starts from N(0, I), which approximates the marginal at T-1 only.
    Raises ConfigError unless 1 <= num <= T.
    """
    if not 1 <= num <= num_timesteps:
        raise ConfigError(f"steps must lie in 1..{num_timesteps}, got {num}")
    return [round((k + 1) * num_timesteps / num) - 1 for k in range(num)]


def respace(schedule: Schedule, timesteps: Sequence[int]) -> Schedule:
    """The process restricted to `timesteps` (ascending, within 0..T-1): Nichol & Dhariwal 2021, Eq. 19.

    Marginals are those of the full process: alpha_bar'[k] = alpha_bar[timesteps[k]].
    Raises ConfigError unless `timesteps` is a non-empty ascending subset.
    """
    chosen = torch.as_tensor(timesteps, dtype=torch.int64)
    if len(chosen) == 0 or (chosen.diff() <= 0).any() or chosen[0] < 0 or chosen[-1] >= schedule.num_timesteps:
        raise ConfigError(f"timesteps must ascend within 0..{schedule.num_timesteps - 1}, got {list(timesteps)}")
    if len(chosen) == schedule.num_timesteps:
        return schedule
    alpha_bars = schedule.alpha_bars[chosen]
    betas = 1.0 - alpha_bars / torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
    return schedule_from_betas(betas, schedule.timesteps[chosen])
