"""Building blocks of the U-Net, with parameter names and shapes of diffusers, so weights convert both ways.

Activations are float [B, C, H, W], channels last in memory. `emb` is SiLU(time + class embedding), float [B, D], or
[1, D] when the whole batch shares one embedding. `words` are hash words of pipeline.models.dropout, None: no dropout.
"""

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone knows)
from torch import Tensor, nn

from pipeline.models.dropout import dropout_mask
from pipeline.models.winograd import winograd_conv, winograd_pays


def sinusoidal_embedding(t: Tensor, dim: int, freq_shift: int = 1, cosines_first: bool = False) -> Tensor:
    """Position embedding of timesteps, float32 [B, dim]: sines, then cosines (Vaswani et al. 2017; Ho et al. 2020).

    t: [B], any number dtype, in 0..T-1. An odd `dim` ends in 0. The n = dim // 2 frequencies are 10000^(-i / (n -
    freq_shift)): for freq_shift 1 they fall from 1 to 1/10000, both ends included.
    """
    half = dim // 2
    rate = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t[:, None].float() * torch.exp(rate)[None, :]
    parts = [angles.cos(), angles.sin()] if cosines_first else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, dim % 2))


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU(GroupNorm(x)); SiLU runs in place unless gradients need the output of the norm."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps height and width, or doubles them first by nearest neighbour when `enlarge`.

    `fast` allows Winograd's algorithm where `winograd_pays`; with False, torch's convolution always runs.
    """

    def __init__(self, c_in: int, c_out: int, enlarge: bool = False) -> None:
        super().__init__(c_in, c_out, 3, padding=1)
        self.enlarge = enlarge
        self.fast = True

    def forward(self, x: Tensor, emb: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolution of x; emb [B or 1, c_out] is added to every pixel, residual [B, c_out, H', W'] is added last."""
        bias = cast(Tensor, self.bias)
        if self.fast and winograd_pays(x, self.weight, self.enlarge):
            return winograd_conv(x, self.weight, bias[None] if emb is None else emb + bias, residual, self.enlarge)
        if self.enlarge:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if emb is not None and len(emb) == 1:
            bias, emb = bias + emb[0], None
        out = F.conv2d(x, self.weight, bias, padding=1)
        if emb is not None:
            out = out + emb[:, :, None, None]
        return out if residual is None else out + residual


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, Linear: float [B, dim_in] -> [B, dim_out]."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim_out)
        self.linear_2 = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class ResnetBlock(nn.Module):
    """x + conv2(drop(SiLU(norm2(conv1(SiLU(norm1(x))) + projected time)))), with a 1x1 shortcut if channels change.

    layer: index of this block in the network; its dropout masks depend on the index.
    """

    def __init__(self, channels: tuple[int, int], emb_dim: int, groups: int, eps: float, dropout: float) -> None:
        super().__init__()
        c_in, c_out = channels
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = Conv3x3(c_in, c_out)
        self.time_emb_proj = nn.Linear(emb_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = Conv3x3(c_out, c_out)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None
        self.dropout = dropout
        self.layer = 0

    def forward(self, x: Tensor, emb: Tensor, words: Tensor | None) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x), self.time_emb_proj(emb))
        h = norm_silu(self.norm2, h)
        if words is not None:
            h = h * dropout_mask(words[self.layer], h.shape, self.dropout)
        out: Tensor = self.conv2(h, None, x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class ModulatedResnetBlock(ResnetBlock):
    """A residual block with other uses of the time embedding, or that changes the size of its input.

    scale_shift: conv2 sees SiLU(norm2(conv1(...)) * (1 + scale) + shift), where time gives scale and shift (Nichol &
    Dhariwal 2021). resample: "down" averages 2x2 pixels before conv1 and in the shortcut, "up" doubles both by nearest
    neighbour, None keeps the size.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        emb_dim: int,
        groups: int,
        eps: float,
        dropout: float,
        scale_shift: bool,
        resample: Literal["down", "up"] | None,
    ) -> None:
        super().__init__(channels, emb_dim, groups, eps, dropout)
        self.scale_shift, self.resample = scale_shift, resample
        if scale_shift:
            self.time_emb_proj = nn.Linear(emb_dim, 2 * channels[1])
        self.conv1.enlarge = resample == "up"

    def forward(self, x: Tensor, emb: Tensor, words: Tensor | None) -> Tensor:
        h, time = norm_silu(self.norm1, x), self.time_emb_proj(emb)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")  # conv1 enlarges h
        if self.scale_shift:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)
            h = F.silu(self.norm2(self.conv1(h)) * (1 + scale) + shift)
        else:
            h = norm_silu(self.norm2, self.conv1(h, time))
        if words is not None:
            h = h * dropout_mask(words[self.layer], h.shape, self.dropout)
        out: Tensor = self.conv2(h, None, x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(d)) v) over the H*W positions, for each head of d channels.

    head_dim: d, a divisor of the channels; None: one head with all of them. groups: of the norm of x; 0: no norm.
    """

    def __init__(self, channels: int, groups: int, eps: float, head_dim: int | None = None) -> None:
        super().__init__()
        self.heads = channels // (head_dim or channels)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups else None
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        normed = x if self.group_norm is None else self.group_norm(x)
        tokens = normed.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        bias = torch.cat([self.to_q.bias, self.to_k.bias, self.to_v.bias])
        q, k, v = F.linear(tokens, weight, bias).chunk(3, dim=-1)
        if self.heads > 1:
            q, k, v = (part.view(batch, height * width, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        if self.heads > 1:
            mixed = mixed.transpose(1, 2).reshape(batch, 1, height * width, channels)
        out: Tensor = self.to_out[0](mixed)
        return x + out.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    padding: 0: one row of zeros at the bottom and one column at the right only (Ho et al. 2020); 1: on all sides.
    """

    def __init__(self, channels: int, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels, enlarge=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out
