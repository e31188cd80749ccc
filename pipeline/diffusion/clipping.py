"""Keeping a predicted x_0 inside the range of images."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["DynamicThreshold", "clip_to_unit"]


def clip_to_unit(x_0: Tensor) -> Tensor:
    """Clamp to [-1, 1]."""
    return x_0.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class DynamicThreshold:
    """Saharia et al. 2022 (Imagen, arXiv 2205.11487), section 2.3: clamp to [-s, s] and divide by s.

    s is the `quantile` (0..1] of |x_0| within each sample, but at least 1: a sample in range is left alone. For strong
    guidance, where plain clipping saturates.
    """

    quantile: float

    def __call__(self, x_0: Tensor) -> Tensor:
        s = x_0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1.0)
        s = s.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-s, s) / s
