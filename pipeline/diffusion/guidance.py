"""Classifier-free guidance: Ho & Salimans 2022 (arXiv 2207.12598), Eq. 6, as a wrapper around a denoiser.

out = unconditional + scale * (conditional - unconditional): scale 0 ignores the condition, 1 is the conditional model,
larger scales strengthen the condition (the paper's w is scale - 1). For given x_t, epsilon, x_0, v and the posterior
mean are affine in one another, so the rule is the same for each. Learned variance channels come from the conditional
output.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.diffusion.objective import Denoiser

LabelledDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, labels int64 [B]) -> raw output


def _combine(conditional: Tensor, unconditional: Tensor, scale: float, num_channels: int) -> Tensor:
    prediction = torch.lerp(unconditional[:, :num_channels], conditional[:, :num_channels], scale)
    return torch.cat([prediction, conditional[:, num_channels:]], dim=1)


def _outside(t: Tensor, interval: tuple[int, int] | None) -> bool:
    """Whether sampling at t (all rows alike) is outside the closed interval. Reads t on the host."""
    return interval is not None and not interval[0] <= int(t[0]) <= interval[1]


def guided(
    conditional: Denoiser, unconditional: Denoiser, scale: float, interval: tuple[int, int] | None = None
) -> Denoiser:
    """Guidance from two denoisers; outside `interval` (timestep indices, both ends included) only `conditional` runs.

    A limited interval saves network calls and preserves diversity: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        out = conditional(x_t, t)
        if scale == 1.0 or _outside(t, interval):
            return out
        return _combine(out, unconditional(x_t, t), scale, x_t.shape[1])

    return denoise


def guided_by_label(
    denoiser: LabelledDenoiser,
    labels: Tensor,
    null_labels: Tensor,
    scale: float,
    interval: tuple[int, int] | None = None,
) -> Denoiser:
    """`guided` for one network and int64 [B] labels; one pass over a doubled batch gives both outputs."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        if scale == 1.0 or _outside(t, interval):
            return denoiser(x_t, t, labels)
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, null_labels]))
        conditional, unconditional = both.chunk(2)
        return _combine(conditional, unconditional, scale, x_t.shape[1])

    return denoise
