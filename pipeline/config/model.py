"""Settings of the network and of the diffusion process."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section


class ModelConfig(Section):
    """The U-Net of Ho et al. 2020, appendix B; image size and channels come from the dataset."""

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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bad = [c for c in self.block_out_channels if c < 1 or c % self.norm_num_groups]
        if bad:
            raise ValueError(f"block_out_channels {bad} must be multiples of norm_num_groups {self.norm_num_groups}")
        if any(not 0 <= level < len(self.block_out_channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels must lie in 0..{len(self.block_out_channels) - 1}")
        return self


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
