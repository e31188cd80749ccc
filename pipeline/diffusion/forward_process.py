"""The forward process q, and conversions between the quantities that a network may predict.

Tensors x are floating [B, C, H, W] (any trailing shape works); t is int64 [B] in 0..T-1 (the paper's 1..T, see
`schedule`). Tables are float64 and are cast once to the dtype and device of x, then kept.
Equation numbers: Ho et al. 2020, arXiv 2006.11239.
"""

from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.schedule import Schedule

Prediction = Literal["epsilon", "x_0", "v", "mean"]


class Process:
    """q(x_t | x_{t-1}), q(x_t | x_0), q(x_{t-1} | x_t, x_0), and eps <-> x_0 <-> v <-> posterior mean."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        alpha_bars = schedule.alpha_bars
        self._float64 = {
            "sqrt_alpha": schedule.alphas.sqrt(),
            "sqrt_beta": schedule.betas.sqrt(),
            "signal": alpha_bars.sqrt(),
            "noise": (1.0 - alpha_bars).sqrt(),
            "posterior_variance": schedule.posterior_variance,
            "coef_x0": schedule.posterior_mean_coef_x0,
            "coef_xt": schedule.posterior_mean_coef_xt,
            "log_small": schedule.log_variance_small,
            "log_large": schedule.log_variance_large,
            "log_beta": schedule.betas.log(),
            "snr": schedule.snr,
        }
        self._cast: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Table `name` at t, shaped [B, 1, 1, ...] to broadcast against `like`, in its dtype and on its device."""
        key = (name, like.dtype, like.device)
        if key not in self._cast:
            # Tensors made in inference mode cannot take part in autograd, and a later training step uses this table.
            with torch.inference_mode(False):
                self._cast[key] = self._float64[name].to(like)
        return self._cast[key][t].view(-1, *[1] * (like.ndim - 1))

    def q_step(self, x_prev: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I). Eq. 2."""
        return self.at("sqrt_alpha", t, x_prev) * x_prev + self.at("sqrt_beta", t, x_prev) * eps

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I). Eq. 4."""
        return self.at("signal", t, x_0) * x_0 + self.at("noise", t, x_0) * eps

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [like x_t], variance and log variance [B, 1, 1, 1] of q(x_{t-1} | x_t, x_0). Eq. 6-7.

        At t = 0 the variance is 0 and the log variance is that of t = 1.
        """
        mean = self.posterior_mean(x_0, x_t, t)
        return mean, self.at("posterior_variance", t, x_t), self.at("log_small", t, x_t)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """mu_tilde(x_t, x_0). Eq. 7."""
        return self.at("coef_x0", t, x_t) * x_0 + self.at("coef_xt", t, x_t) * x_t

    def to_x0(self, kind: Prediction, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 implied by a network output of `kind`.

        "epsilon" and "mean" divide by a factor that vanishes as alpha_bar does; at alpha_bar = 0 use "v" or "x_0".
        """
        match kind:
            case "x_0":
                return out
            case "epsilon":  # Eq. 4 solved for x_0 (Eq. 15)
                return (x_t - self.at("noise", t, x_t) * out) / self.at("signal", t, x_t)
            case "v":  # Salimans & Ho 2022, appendix D
                return self.at("signal", t, x_t) * x_t - self.at("noise", t, x_t) * out
            case "mean":  # Eq. 7 solved for x_0
                return (out - self.at("coef_xt", t, x_t) * x_t) / self.at("coef_x0", t, x_t)

    def to_eps(self, kind: Prediction, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """eps implied by a network output of `kind`."""
        match kind:
            case "epsilon":
                return out
            case "v":
                return self.at("noise", t, x_t) * x_t + self.at("signal", t, x_t) * out
            case _:
                x_0 = self.to_x0(kind, out, x_t, t)
                return (x_t - self.at("signal", t, x_t) * x_0) / self.at("noise", t, x_t)

    def target(self, kind: Prediction, x_0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The training target of a network that predicts `kind`, for x_t = q_sample(x_0, t, eps)."""
        match kind:
            case "epsilon":
                return eps
            case "x_0":
                return x_0
            case "v":  # Salimans & Ho 2022, section 4
                return self.at("signal", t, x_0) * eps - self.at("noise", t, x_0) * x_0
            case "mean":
                return self.posterior_mean(x_0, x_t, t)
