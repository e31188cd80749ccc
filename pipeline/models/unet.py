"""The U-Net of Ho et al. 2020 (appendix B), parameter-compatible with diffusers' UNet2DModel.

The defaults are those of google/ddpm-cifar10-32: one attention head, self-attention at `attention_levels` and in the
middle block, sines first in the time embedding, stride-2 convolutions padded right and bottom. The paper's CIFAR-10
network has 35,746,307 parameters. Fixed choices: a time embedding of 4 * block_out_channels[0], outputs of residual
blocks not rescaled.

A class-conditional network has one class more than `num_classes`: the class `null_label` means "no label". Label
dropout trains this class, and guidance uses it. With `null_class` off the network has no such class.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.model import ModelConfig
from pipeline.config.training import InitialWeights
from pipeline.errors import ConfigError
from pipeline.models.dropout import DropoutKey
from pipeline.models.layers import (
    Attention,
    Downsample,
    ModulatedResnetBlock,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    norm_silu,
    sinusoidal_embedding,
)

BRANCH_ENDS = ("conv2", "to_out.0", "conv_out")
"""Names of the last layer of every residual branch and of the network; these layers start at 0."""


@torch.no_grad()
def init_weights(model: nn.Module, seed: int, kind: InitialWeights = "paper") -> None:
    """Fill every parameter as a function of `seed` alone.

    paper: Ho et al. 2020. Weights are uniform with variance 2 / (fan_in + fan_out), biases 0.
    fan_in: torch's bounds, as Nichol & Dhariwal 2021. Weights and biases are uniform in +-fan_in^-1/2; for
    fan_in = fan_out that is a third of the variance of `paper`.
    Both set the layers of BRANCH_ENDS to 0, so every block starts as the identity and the network predicts 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name.endswith(BRANCH_ENDS):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
            else:
                _draw(module, kind, generator)
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _draw(layer: nn.Conv2d | nn.Linear, kind: InitialWeights, generator: torch.Generator) -> None:
    """Draw weight and bias of one layer in index order, so the memory layout does not change the values."""
    weight, bias = torch.empty(layer.weight.shape), torch.zeros(layer.weight.shape[0])
    if kind == "paper":
        nn.init.xavier_uniform_(weight, generator=generator)
    else:
        bound = weight[0].numel() ** -0.5
        for drawn in (weight, bias):
            nn.init.uniform_(drawn, -bound, bound, generator=generator)
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)


def _channels_last(weight: Tensor) -> Tensor:
    """Channels last with explicit strides: DDP needs equal strides of weight and gradient, also for 1x1 kernels."""
    _, channels, height, width = weight.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return weight.contiguous(memory_format=torch.channels_last).as_strided(weight.shape, strides)


class _Stage(nn.Module):
    """Residual blocks, each followed by attention if the stage has it; optionally recomputed in the backward pass."""

    def __init__(self, config: ModelConfig, channels: list[tuple[int, int]], num_attentions: int) -> None:
        super().__init__()
        groups, eps, head_dim = config.norm_num_groups, config.norm_eps, config.attention_head_dim
        self.resnets = nn.ModuleList(_resnet_block(config, pair) for pair in channels)
        if isinstance(self, _MidStage) and config.attn_norm_num_groups is not None:
            groups = config.attn_norm_num_groups
        if num_attentions:
            self.attentions = nn.ModuleList(
                Attention(channels[0][1], groups, eps, head_dim) for _ in range(num_attentions)
            )
        self._recompute = config.gradient_checkpointing

    def resnet(self, index: int, *inputs: Tensor | None) -> Tensor:
        return self._run(self.resnets[index], *inputs)

    def attention(self, index: int, h: Tensor) -> Tensor:
        return self._run(self.attentions[index], h) if hasattr(self, "attentions") else h

    def resample(self, block: nn.Module, h: Tensor, *inputs: Tensor | None) -> Tensor:
        """h halved or doubled by `block`: a residual block also takes emb and words, the `inputs`."""
        out: Tensor = self._run(block, h, *inputs) if isinstance(block, ResnetBlock) else block(h)
        return out

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        if self._recompute and torch.is_grad_enabled():
            # Nothing in a block draws from a generator, so there is no state to restore.
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return out
        return block(*inputs)


def _resnet_block(
    config: ModelConfig, channels: tuple[int, int], resample: Literal["down", "up"] | None = None
) -> ResnetBlock:
    shared = channels, 4 * config.block_out_channels[0], config.norm_num_groups, config.norm_eps, config.dropout
    scale_shift = config.resnet_time_scale_shift == "scale_shift"
    return ModulatedResnetBlock(*shared, scale_shift, resample) if scale_shift or resample else ResnetBlock(*shared)


class _DownStage(_Stage):
    def __init__(self, config: ModelConfig, channels: list[tuple[int, int]], level: int) -> None:
        super().__init__(config, channels, len(channels) if level in config.attention_levels else 0)
        width = channels[-1][1]
        if level in config.resnet_downsample_levels:
            self.downsamplers = nn.ModuleList([_resnet_block(config, (width, width), "down")])
        elif level < len(config.block_out_channels) - 1:
            self.downsamplers = nn.ModuleList([Downsample(width, config.downsample_padding)])

    def forward(self, h: Tensor, emb: Tensor, words: Tensor | None, skips: list[Tensor]) -> Tensor:
        """Also appends the skip connections for the mirrored up stage to `skips`."""
        for index in range(len(self.resnets)):
            h = self.attention(index, self.resnet(index, h, emb, words))
            skips.append(h)
        if hasattr(self, "downsamplers"):
            h = self.resample(self.downsamplers[0], h, emb, words)
            skips.append(h)
        return h


class _MidStage(_Stage):
    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__(config, [(channels, channels)] * 2, int(config.add_attention))

    def forward(self, h: Tensor, emb: Tensor, words: Tensor | None) -> Tensor:
        h = self.attention(0, self.resnet(0, h, emb, words))
        return self.resnet(1, h, emb, words)


class _UpStage(_Stage):
    def __init__(self, config: ModelConfig, channels: list[tuple[int, int]], level: int) -> None:
        super().__init__(config, channels, len(channels) if level in config.attention_levels else 0)
        width = channels[-1][1]
        if level in config.resnet_upsample_levels:
            self.upsamplers = nn.ModuleList([_resnet_block(config, (width, width), "up")])
        elif level > 0:
            self.upsamplers = nn.ModuleList([Upsample(width)])

    def forward(self, h: Tensor, emb: Tensor, words: Tensor | None, skips: list[Tensor]) -> Tensor:
        for index in range(len(self.resnets)):
            h = self.resnet(index, torch.cat([h, skips.pop()], dim=1), emb, words)
            h = self.attention(index, h)
        if hasattr(self, "upsamplers"):
            h = self.resample(self.upsamplers[0], h, emb, words)
        return h


class UNet(nn.Module):
    """Denoising network: predicts the quantity of DiffusionConfig.prediction from x_t and t, pixel by pixel.

    Initialised by `init_weights(self, 0)`, without the global random state. Under `torch.device("meta")` the parameters
    have names and shapes only.
    """

    def __init__(self, config: ModelConfig, in_channels: int, out_channels: int, sample_size: int) -> None:
        super().__init__()
        self.config = config
        self.in_channels, self.out_channels, self.sample_size = in_channels, out_channels, sample_size
        self.num_layers = 0
        least = 2 * (config.freq_shift + 1)
        if config.block_out_channels[0] < least:
            raise ConfigError(f"model.block_out_channels: the first must be at least {least}, for the time embedding")
        self._check_size(sample_size, sample_size)
        device = torch.get_default_device()
        with torch.device("meta"):
            self._build()
        for layer, block in enumerate(m for m in self.modules() if isinstance(m, ResnetBlock)):
            block.layer = layer
            self.num_layers = layer + 1
        self.to_empty(device=device)
        if device.type != "meta":
            init_weights(self, 0)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.data = _channels_last(module.weight.data)

    def _build(self) -> None:
        config, widths = self.config, self.config.block_out_channels
        depth, last = config.layers_per_block, len(widths) - 1
        emb_dim = 4 * widths[0]
        self.conv_in = nn.Conv2d(self.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], emb_dim)
        if config.num_classes is not None:
            self.class_embedding = nn.Embedding(config.num_classes + config.null_class, emb_dim)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            pairs = [(widths[max(level - 1, 0)] if i == 0 else width, width) for i in range(depth)]
            self.down_blocks.append(_DownStage(config, pairs, level))
            skips += [width] * (depth + (level != last))
        self.mid_block = _MidStage(config, widths[-1])
        below = widths[-1]
        for level in reversed(range(len(widths))):
            inputs = [below] + [widths[level]] * depth
            pairs = [(width + skips.pop(), widths[level]) for width in inputs]
            self.up_blocks.append(_UpStage(config, pairs, level))
            below = widths[level]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], self.out_channels, 3, padding=1)

    @property
    def null_label(self) -> int | None:
        """The label of "no label" in a class-conditional network; None for a network without one."""
        return self.config.num_classes if self.config.null_class else None

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, dropout: DropoutKey | None = None
    ) -> Tensor:
        """float [B, out_channels, H, W], channels last in memory.

        x: float [B, in_channels, H, W]. t: int64 [B] in 0..T-1, or (cheaper) one element of any shape for the whole
        batch. class_labels: int64 [B] or [1] in 0..num_classes for a class-conditional network, else None. dropout:
        needed in training mode when config.dropout > 0, ignored otherwise. Raises ConfigError.
        """
        self._check_size(x.shape[2], x.shape[3])
        emb = self._embed(t.reshape(-1), class_labels)
        words = self._dropout_words(dropout)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for down in self.down_blocks:
            h = down(h, emb, words, skips)
        h = self.mid_block(h, emb, words)
        for up in self.up_blocks:
            h = up(h, emb, words, skips)
        out: Tensor = self.conv_out(norm_silu(self.conv_norm_out, h))
        return out

    def _embed(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """SiLU(time + class embedding), float [B or 1, D]; every block projects this activation."""
        dtype = self.conv_in.weight.dtype
        config = self.config
        time = sinusoidal_embedding(t, config.block_out_channels[0], config.freq_shift, config.flip_sin_to_cos)
        emb: Tensor = self.time_embedding(time.to(dtype))
        if (class_labels is None) != (self.config.num_classes is None):
            raise ConfigError(
                "class_labels given to a network with no num_classes"
                if self.config.num_classes is None
                else "a class-conditional network needs class_labels"
                + ("" if self.null_label is None else f"; {self.null_label} stands for no label")
            )
        if class_labels is not None:
            emb = emb + self.class_embedding(class_labels)
        return F.silu(emb)

    def _dropout_words(self, dropout: DropoutKey | None) -> Tensor | None:
        if not self.training or self.config.dropout == 0:
            return None
        if dropout is None:
            raise ConfigError(f"model.dropout is {self.config.dropout}: training needs a DropoutKey with every batch")
        return dropout.words(self.num_layers)

    def _check_size(self, height: int, width: int) -> None:
        step = 2 ** (len(self.config.block_out_channels) - 1)
        if height % step or width % step:
            raise ConfigError(
                f"images of {height}x{width} pixels cannot be halved for every level: need multiples of {step}"
            )
