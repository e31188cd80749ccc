"""Moving averages of the weights, used for sampling: shadow <- beta_n shadow + (1 - beta_n) weight.

Three kinds, by the decay beta_n of step n = 1, 2, ... of B images:

    decay              beta_n = d: exponential (Ho et al. 2020, appendix B: d = 0.9999)
    half_life_images   beta_n = 0.5^(B / h): the influence of a weight halves every h images (Karras et al. 2022,
                       arXiv 2206.00364); with warm-up h is at most 0.05 of the images seen
    relative_width     beta_n = (1 - 1/n)^(gamma + 1): step k has a weight proportional to k^gamma, so the average
                       covers a fixed share of the run, sigma_rel n wide (Karras et al. 2024, arXiv 2312.02696)

All decays depend on the step alone, not on workers or restarts.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.config.training import EmaConfig
from pipeline.errors import DataError

_RAMP_UP = 0.05  # share of the images seen, from the training code of Karras et al. 2022


@functools.lru_cache
def power_exponent(relative_width: float) -> float:
    """gamma > 0 of the power function whose standard deviation is `relative_width`, in (0, 0.28), of the run's length.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); with s = sigma_rel^-2 that is the cubic
    gamma^3 + 7 gamma^2 + (16 - s) gamma + (12 - s) = 0 (Karras et al. 2024, Algorithm 2). Below a width of 12^-1/2 it
    has three real roots; this is the largest, by Viete's formula.
    """
    s = relative_width**-2
    p, q = -(s + 1.0 / 3.0), 2.0 / 27.0 + 4.0 * s / 3.0  # y^3 + p y + q = 0 for gamma = y - 7/3
    angle = math.acos(1.5 * q / p * math.sqrt(-3.0 / p)) / 3.0
    return 2.0 * math.sqrt(-p / 3.0) * math.cos(angle) - 7.0 / 3.0


def ema_decay(config: EmaConfig, step: int, global_batch: int) -> float:
    """beta_n of step n = `step` >= 1 of `global_batch` images, in [0, 1)."""
    if config.relative_width is not None:
        return float((1.0 - 1.0 / step) ** (power_exponent(config.relative_width) + 1.0))
    if config.half_life_images is not None:
        half_life = config.half_life_images
        if config.warmup:
            half_life = min(half_life, _RAMP_UP * (step - 1) * global_batch)
        return float(0.5 ** (global_batch / half_life)) if half_life > 0 else 0.0
    # Warm-up gives early weights little influence.
    return min(config.decay, (1 + step) / (10 + step)) if config.warmup else config.decay


class Ema:
    """One average of the parameters of one model.

    `shadow` is the whole state, by parameter name. It starts as a copy of the weights, and is sharded over the workers
    if the weights are.
    """

    def __init__(self, model: nn.Module, config: EmaConfig, global_batch: int) -> None:
        self.config, self.global_batch = config, global_batch
        self._weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.shadow = {name: weight.clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights after optimiser step `step` (from 1; a resumed run continues the count)."""
        pull = 1.0 - ema_decay(self.config, step, self.global_batch)
        torch._foreach_lerp_(list(self.shadow.values()), list(self._weights.values()), pull)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average at the current weights."""
        for name, weight in self._weights.items():
            self.shadow[name].copy_(weight)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the shadow. Raises DataError when a name or a shape differs."""
        for name in state.keys() | self.shadow.keys():
            if name not in state or name not in self.shadow:
                raise DataError(f"EMA state: tensor '{name}' is {'missing' if name in self.shadow else 'unexpected'}")
            if state[name].shape != self.shadow[name].shape:
                raise DataError(
                    f"EMA state: tensor '{name}' is {list(state[name].shape)}, not {list(self.shadow[name].shape)}"
                )
        for name, value in state.items():
            self.shadow[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the shadow."""
        for name, weight in model.named_parameters():
            weight.copy_(self.shadow[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model holds the averaged weights; afterwards its own, also after an exception."""
        own = {name: weight.clone() for name, weight in self._weights.items()}
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self.shadow[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(own[name])
