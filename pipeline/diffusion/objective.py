"""Training losses, one number per sample. Equation numbers: Ho et al. 2020, arXiv 2006.11239."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.reverse_process import Reverse, split
from pipeline.diffusion.schedule import make_schedule
from pipeline.diffusion.variational_bound import bound_term

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t int64 [B]) -> raw output [B, C or 2C, H, W]


class Objective:
    """The training loss of a DiffusionConfig, without parameters, state or randomness.

    simple    mean squared error of the prediction (Eq. 14 for epsilon), with min-SNR weights if min_snr_gamma is set
    bound     T times one term of Eq. 5, in bits per dimension: for uniform t an unbiased estimate of the bound less
              its constant L_T
    hybrid    simple + hybrid_weight * bound; the bound trains the variance only, its gradient stops at the mean
              (Nichol & Dhariwal 2021, Eq. 16)

    The system of 2015 is prediction "mean", variance "learned", objective "bound"; that of 2020 is the default.
    """

    def __init__(self, config: DiffusionConfig, num_channels: int) -> None:
        self.config = config
        self.num_channels = num_channels
        self.process = Process(make_schedule(config))
        self.reverse = Reverse(self.process, config.prediction, config.variance)

    @property
    def out_channels(self) -> int:
        """Output channels of the network: twice `num_channels` when the variance is learned."""
        return self.num_channels * (2 if self.reverse.learns_variance else 1)

    def __call__(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss [B] for x_0 float32 [B, C, H, W] in [-1, 1], t int64 [B] in 0..T-1, eps like x_0."""
        x_t = self.process.q_sample(x_0, t, eps)
        out = denoiser(x_t, t)
        match self.config.objective:
            case "simple":
                return self._mse(out, x_0, x_t, t, eps)
            case "bound":
                return self._bound(out, x_0, x_t, t)
            case "hybrid":
                frozen = torch.cat([out[:, : self.num_channels].detach(), out[:, self.num_channels :]], dim=1)
                bound = self._bound(frozen, x_0, x_t, t)
                return self._mse(out, x_0, x_t, t, eps) + self.config.hybrid_weight * bound

    def _mse(self, out: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        prediction, _ = split(out, self.num_channels)
        target = self.process.target(self.config.prediction, x_0, x_t, t, eps)
        mse = (prediction - target).square().flatten(1).mean(1)
        gamma = self.config.min_snr_gamma
        return mse if gamma is None else self._min_snr_weight(gamma, self.process.at("snr", t, mse)) * mse

    def _bound(self, out: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        p = self.reverse(out, x_t, t)
        return self.config.num_timesteps * bound_term(self.process, p, x_0, x_t, t)

    def _min_snr_weight(self, gamma: float, snr: Tensor) -> Tensor:
        """min(SNR, gamma) as a weight on the x_0 error, converted to the error of the predicted quantity, [B].

        Hang et al. 2023 (arXiv 2303.09556): the x_0 error is the epsilon error / SNR, and the v error / (SNR + 1).
        """
        weight = snr.clamp(max=gamma)
        match self.config.prediction:
            case "epsilon":
                return weight / snr
            case "v":
                return weight / (snr + 1.0)
            case _:
                return weight
