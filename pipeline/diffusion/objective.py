"""Training losses, one number per sample. Equation numbers: Ho et al. 2020, arXiv 2006.11239."""

from collections.abc import Callable

from torch import Tensor

from pipeline.config import DiffusionConfig
from pipeline.diffusion.process import Process
from pipeline.diffusion.reverse import Reverse
from pipeline.diffusion.schedule import make_schedule

__all__ = ["Denoiser", "Objective"]

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, C, H, W], t int64 [B]) -> raw output [B, C or 2C, H, W]


class Objective:
    """The loss that `config` names; no parameters, no state, no randomness of its own."""

    def __init__(self, config: DiffusionConfig, num_channels: int) -> None:
        self.config = config
        self.num_channels = num_channels
        self.process = Process(make_schedule(config))
        self.reverse = Reverse(self.process, config.prediction, config.variance)

    @property
    def out_channels(self) -> int:
        """Channels the network must output: doubled when it also gives the variance."""
        return self.num_channels * (2 if self.reverse.learns_variance else 1)

    def __call__(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Loss [B] for x_0 float32 [B, C, H, W] in [-1, 1], t int64 [B] in 0..T-1, eps like x_0."""
        if self.config.objective != "simple":
            raise NotImplementedError(self.config.objective)
        x_t = self.process.q_sample(x_0, t, eps)
        prediction, _ = self.reverse.split(denoiser(x_t, t))
        return self.mse(prediction, x_0, x_t, t, eps)

    def mse(self, prediction: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Mean squared error per sample (Eq. 14 for epsilon), min-SNR weighted if asked, [B]."""
        target = self.process.target(self.config.prediction, x_0, x_t, t, eps)
        return (prediction - target).square().flatten(1).mean(1)
