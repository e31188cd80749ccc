"""The reverse process: from a raw network output to the Gaussian p_theta(x_{t-1} | x_t).

The network outputs `num_channels` channels of the predicted quantity, and, when the variance is learned, as many
channels again for the variance:

    fixed_small     sigma^2 = beta_tilde_t           (Ho et al. 2020, section 3.2)
    fixed_large     sigma^2 = beta_t
    learned_range   log sigma^2 = f log beta_t + (1 - f) log beta_tilde_t,  f = (out + 1) / 2
                                                     (Nichol & Dhariwal 2021, Eq. 15)
    learned         log sigma^2 = log beta_t + out   (free, diagonal, as in Sohl-Dickstein et al. 2015; out = 0, the
                                                     initial output, is fixed_large)

Sampling with a fixed variance ignores the variance channels of a network that has them.

With `prediction: mean` the first channels are mu_theta itself, as in the baseline of Ho et al. 2020, Table 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.diffusion.forward_process import Prediction, Process

Variance = Literal["fixed_small", "fixed_large", "learned_range", "learned"]
Clip = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """p_theta(x_{t-1} | x_t) and the predicted x_0: x_0 and mean [B, C, H, W], log_variance broadcastable to mean."""

    x_0: Tensor
    mean: Tensor
    log_variance: Tensor


def split(out: Tensor, num_channels: int) -> tuple[Tensor, Tensor | None]:
    """Raw output [B, C or 2C, H, W] -> prediction and variance channels, [B, C, H, W] each; None: no variance."""
    if out.shape[1] == num_channels:
        return out, None
    if out.shape[1] != 2 * num_channels:
        raise ValueError(f"the network gave {out.shape[1]} channels; {num_channels} or twice as many are expected")
    return out[:, :num_channels], out[:, num_channels:]


class Reverse:
    """Maps (raw output, x_t, t) to p_theta(x_{t-1} | x_t)."""

    def __init__(self, process: Process, prediction: Prediction, variance: Variance) -> None:
        self.process = process
        self.prediction = prediction
        self.variance = variance

    @property
    def learns_variance(self) -> bool:
        return self.variance in ("learned_range", "learned")

    def log_variance(self, raw: Tensor | None, t: Tensor, like: Tensor) -> Tensor:
        """log sigma_t^2, [B, 1, 1, 1] when fixed, [B, C, H, W] when learned."""
        if self.variance == "fixed_small":
            return self.process.at("log_small", t, like)
        if self.variance == "fixed_large":
            return self.process.at("log_large", t, like)
        if raw is None:
            raise ValueError(f"variance '{self.variance}' needs a network with twice as many output channels")
        log_beta = self.process.at("log_beta", t, like)
        if self.variance == "learned":
            return log_beta + raw
        share = (raw + 1.0) / 2.0
        return share * log_beta + (1.0 - share) * self.process.at("log_small", t, like)

    def __call__(self, out: Tensor, x_t: Tensor, t: Tensor, clip: Clip | None = None) -> Gaussian:
        """p_theta for `out` [B, C or 2C, H, W], x_t [B, C, H, W], t int64 [B].

        `clip` acts on the predicted x_0, and so on the mean.
        """
        prediction, raw = split(out, x_t.shape[1])
        x_0 = self.process.to_x0(self.prediction, prediction, x_t, t)
        if clip is not None:
            x_0 = clip(x_0)
        # An unclipped mean stays the network's exact output; a conversion to x_0 and back would round it.
        direct = self.prediction == "mean" and clip is None
        mean = prediction if direct else self.process.posterior_mean(x_0, x_t, t)
        return Gaussian(x_0, mean, self.log_variance(raw, t, x_t))
