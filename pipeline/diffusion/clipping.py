"""Clipping of a predicted x_0 to the image range [-1, 1], plain or by dynamic thresholding."""

from dataclasses import dataclass

from torch import Tensor


def clip_to_unit(x_0: Tensor) -> Tensor:
    """Clamp to [-1, 1]."""
    return x_0.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class DynamicThreshold:
    """Saharia et al. 2022 (Imagen, arXiv 2205.11487), section 2.3: clamp to [-s, s] and divide by s.

    s is the `quantile` in (0, 1] of |x_0| within each sample, at least 1, so a sample inside [-1, 1] stays as it is.
    Use it with strong guidance, where plain clipping saturates many pixels.
    """

    quantile: float

    def __call__(self, x_0: Tensor) -> Tensor:
        s = x_0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1.0)
        s = s.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-s, s) / s
