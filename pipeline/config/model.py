"""Settings of the network and of the diffusion process."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import ExtendedSection, Section


class ModelConfig(ExtendedSection):
    """The U-Net of Ho et al. 2020, appendix B; image size and channels come from the dataset.

    The fields in `added` describe other networks of diffusers' UNet2DModel.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {
            "attention_head_dim",
            "add_attention",
            "attn_norm_num_groups",
            "resnet_time_scale_shift",
            "resnet_downsample_levels",
            "resnet_upsample_levels",
            "downsample_padding",
            "flip_sin_to_cos",
            "freq_shift",
            "null_class",
        }
    )

    block_out_channels: tuple[int, ...] = Field(
        (128, 256, 256, 256),
        min_length=1,
        description="channels of each level, full resolution first; every further level halves height and width",
    )
    layers_per_block: int = Field(2, ge=1, description="residual blocks of each level on the way down (one more up)")
    attention_levels: tuple[int, ...] = Field((1,), description="levels with self-attention; 0 is full resolution")
    norm_num_groups: int = Field(32, ge=1, description="groups of every group norm; must divide all channel counts")
    norm_eps: float = Field(1e-6, gt=0, description="epsilon that group norm adds to the variance")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability inside residual blocks")
    num_classes: int | None = Field(None, ge=1, description="number of class labels; unset: an unconditional model")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower steps"
    )
    attention_head_dim: int | None = Field(
        None, ge=1, description="channels of an attention head, so 256 channels and 64 make four heads; unset: one head"
    )
    add_attention: bool = Field(True, description="self-attention in the middle block")
    attn_norm_num_groups: int | None = Field(
        None,
        ge=0,
        description="groups of the norm of the middle block's attention; 0: no norm; unset: norm_num_groups",
    )
    resnet_time_scale_shift: Literal["default", "scale_shift"] = Field(
        "default",
        description="effect of the time embedding in a residual block: added to the first convolution's output, or "
        "scale and shift of the second norm's output (Nichol & Dhariwal 2021)",
    )
    resnet_downsample_levels: tuple[int, ...] = Field(
        (),
        description="levels halved by a residual block that averages 2x2 pixels; the others by a strided convolution",
    )
    resnet_upsample_levels: tuple[int, ...] = Field(
        (), description="levels doubled on the way up by a residual block, not by a convolution alone"
    )
    downsample_padding: Literal[0, 1] = Field(
        0,
        description="zeros around a strided convolution: 0: one at the right and the bottom only; 1: one on all sides",
    )
    flip_sin_to_cos: bool = Field(False, description="cosines before sines in the time embedding")
    freq_shift: int = Field(
        1, ge=0, description="k in the n frequencies 10000^(-i / (n - k)), i = 0..n-1, of the time embedding"
    )
    null_class: bool = Field(
        True, description="the class embedding has one row more than num_classes, for images without a label"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bad = [c for c in self.block_out_channels if c < 1 or c % self.norm_num_groups]
        if bad:
            raise ValueError(f"block_out_channels {bad} must be multiples of norm_num_groups {self.norm_num_groups}")
        if any(not 0 <= level < len(self.block_out_channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels must lie in 0..{len(self.block_out_channels) - 1}")
        last = len(self.block_out_channels) - 1
        if any(not 0 <= level < last for level in self.resnet_downsample_levels):
            raise ValueError(f"resnet_downsample_levels must lie in 0..{last - 1}: the last level is not halved")
        if any(not 0 < level <= last for level in self.resnet_upsample_levels):
            raise ValueError(f"resnet_upsample_levels must lie in 1..{last}: level 0 is not doubled")
        if not self.null_class and self.num_classes is None:
            raise ValueError("null_class false needs num_classes")
        self._check_attention()
        return self

    def _check_attention(self) -> None:
        widths = {self.block_out_channels[level] for level in self.attention_levels}
        widths |= {self.block_out_channels[-1]} if self.add_attention else set()
        bad = sorted(width for width in widths if width % (self.attention_head_dim or width))
        if bad:
            raise ValueError(f"attention_head_dim {self.attention_head_dim} must divide {bad}, channels with attention")
        groups = self.attn_norm_num_groups
        if groups is not None and not self.add_attention:
            raise ValueError("attn_norm_num_groups belongs to the middle block's attention, and add_attention is off")
        if groups and self.block_out_channels[-1] % groups:
            raise ValueError(f"attn_norm_num_groups {groups} must divide {self.block_out_channels[-1]} channels")


class DiffusionConfig(Section):
    """Forward process, network output and training objective."""

    num_timesteps: int = Field(1000, ge=2, description="T, the number of timesteps of the forward process")
    schedule: Literal["linear", "cosine", "sigmoid", "quadratic"] = Field(
        "linear", description="how the noise variance beta grows over the timesteps"
    )
    beta_start: float = Field(1e-4, gt=0, lt=1, description="beta of the first timestep; linear and quadratic only")
    beta_end: float = Field(0.02, gt=0, lt=1, description="beta of the last timestep; linear and quadratic only")
    zero_terminal_snr: bool = Field(False, description="rescale the schedule so that alpha_bar_T = 0")
    prediction: Literal["epsilon", "x_0", "v", "mean"] = Field(
        "epsilon", description="quantity that the network outputs: noise, image, velocity or posterior mean"
    )
    variance: Literal["fixed_small", "fixed_large", "learned_range", "learned"] = Field(
        "fixed_large", description="variance of p_theta(x_{t-1}|x_t); the learned ones need objective hybrid or bound"
    )
    objective: Literal["simple", "bound", "hybrid"] = Field(
        "simple", description="plain MSE (Ho et al. 2020, Eq. 14), the variational bound, or both (improved DDPM)"
    )
    hybrid_weight: float = Field(1e-3, gt=0, description="weight of the bound in objective hybrid")
    min_snr_gamma: float | None = Field(
        None, gt=0, description="gamma of the min-SNR loss weights (Hang et al. 2023); unset: equal weights"
    )
    timestep_sampling: Literal["uniform", "importance"] = Field(
        "uniform", description="distribution of training timesteps; importance needs objective bound or hybrid"
    )

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        learned = self.variance in ("learned_range", "learned")
        if self.beta_start > self.beta_end:
            raise ValueError("beta_start must not exceed beta_end")
        if self.objective == "simple" and learned:
            raise ValueError("a learned variance gets no gradient from objective 'simple': use 'hybrid' or 'bound'")
        if self.objective == "hybrid" and not learned:
            raise ValueError("objective 'hybrid' trains a learned variance: set variance 'learned_range' or 'learned'")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "at zero terminal SNR x_T holds no signal, epsilon does not determine x_0: use 'v' or 'x_0'"
            )
        if self.min_snr_gamma is not None and (self.objective == "bound" or self.prediction == "mean"):
            raise ValueError("min_snr_gamma is defined for an MSE of epsilon, x_0 or v, not for the bound or the mean")
        if self.timestep_sampling == "importance" and self.objective == "simple":
            raise ValueError("importance sampling needs the terms of the bound: use objective 'bound' or 'hybrid'")
        return self
