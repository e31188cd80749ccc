"""Exponential moving average of the weights, what samples are drawn from (Ho et al. 2020, appendix B: decay 0.9999)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.errors import DataError

__all__ = ["Ema", "ema_decay"]


def ema_decay(num_updates: int, decay: float, warmup: bool) -> float:
    """The decay of update n: min(decay, (1 + n) / (10 + n)) with warm-up, so early weights are forgotten quickly."""
    return min(decay, (1 + num_updates) / (10 + num_updates)) if warmup else decay


class Ema:
    """Keeps shadow <- d * shadow + (1 - d) * weight for every parameter of one model.

    `shadow` is the whole state, named as the model names its parameters; it starts as a copy of the weights.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.decay = decay
        self.warmup = warmup
        self._weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.shadow = {name: weight.clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the model's present weights; `num_updates` is the optimiser step, so a resumed run goes on alike."""
        pull = 1.0 - ema_decay(num_updates, self.decay, self.warmup)
        torch._foreach_lerp_(list(self.shadow.values()), list(self._weights.values()), pull)

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
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """`model` holds the averaged weights inside the block and its own again after it, whatever happens."""
        own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(own[name])
