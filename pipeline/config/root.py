"""The configuration of every verb: one frozen model a section, each default stated once.

`pipeline.config.layers` resolves a `Config` from its layers; every run, plan and dataset stores its `Config`.
`digest` covers the settings that decide a result, so `ray`, `storage`, `schedule` and the like are left out.
"""

import os
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.base import Section, digest_of
from pipeline.config.evaluation import EvaluateConfig, MemorisationConfig
from pipeline.config.generation import ExploreConfig, GenerateConfig, SweepConfig
from pipeline.config.ingest import IngestConfig
from pipeline.config.nightly import GateConfig, NightlyConfig
from pipeline.config.operations import RegistryConfig, ScheduleConfig, SubmitConfig

__all__ = [
    "NOT_IN_DIGEST",
    "Config",
    "DiffusionConfig",
    "EmaConfig",
    "ModelConfig",
    "RayConfig",
    "StorageConfig",
    "TrainConfig",
]


def _endpoint_from_environment() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


class StorageConfig(Section):
    """Access to the object store. Credentials come from the environment or the instance role, never from here."""

    endpoint: str | None = Field(
        default_factory=_endpoint_from_environment,
        description="S3 endpoint URL; unset: AWS (default: $AWS_ENDPOINT_URL_S3, then $AWS_ENDPOINT_URL)",
    )
    region: str = Field("us-east-1", description="S3 region")
    verify_tls: bool = Field(True, description="verify the endpoint's TLS certificate")
    connect_timeout_seconds: float = Field(10.0, gt=0, description="time limit for opening a connection, seconds")
    read_timeout_seconds: float = Field(
        60.0, gt=0, description="time limit for a reply, seconds; a conditional write under contention needs several"
    )
    retries: int = Field(5, ge=0, description="repeats of a request after a transient failure; 0: none")
    outage_seconds: float = Field(
        600.0, ge=0, description="how long training waits for an unreachable store before it fails, seconds"
    )


def _check_workers(value: str) -> str:
    bounds = value.split("..", 1)
    if not all(bound.isdigit() and int(bound) >= 1 for bound in bounds) or int(bounds[0]) > int(bounds[-1]):
        raise ValueError("must be N or MIN..MAX with 1 <= MIN <= MAX")
    return value


Workers = Annotated[str, BeforeValidator(str), AfterValidator(_check_workers)]


class RayConfig(Section):
    """The Ray cluster and how many of its processes to use."""

    address: str = Field(
        "local", description="'local': start a cluster for this command; 'auto' or HOST:PORT: join one"
    )
    workers: Workers = Field("1", description="training workers or generation actors: N, or MIN..MAX for elastic")
    use_gpu: bool = Field(False, description="reserve one GPU for each worker or actor")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster; unset: as many as the command needs"
    )
    max_failures: int = Field(3, ge=-1, description="worker or actor failures tolerated by one command; -1: no limit")
    resize_seconds: float = Field(
        60.0, gt=0, description="training with MIN..MAX workers: seconds between checks for a better worker count"
    )

    @property
    def min_workers(self) -> int:
        return int(self.workers.partition("..")[0])

    @property
    def max_workers(self) -> int:
        return int(self.workers.rpartition("..")[2])


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


class EmaConfig(Section):
    """One moving average of the weights: constant decay, half-life in images, or power function."""

    decay: float = Field(0.9999, ge=0, lt=1, description="share of the old average kept at each step")
    warmup: bool = Field(
        True, description="cap decay at (1 + n) / (10 + n) at step n, and the half-life at 0.05 of the images seen"
    )
    half_life_images: float | None = Field(
        None, gt=0, description="replaces decay: images after which a weight counts half (Karras et al. 2022)"
    )
    relative_width: float | None = Field(
        None, gt=0, lt=0.28, description="replaces decay: sigma_rel of the power function (Karras et al. 2024)"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.half_life_images is not None and self.relative_width is not None:
            raise ValueError("give half_life_images or relative_width, not both")
        return self


_RESERVED = ("ema", "model", "optimizer", "raw", "scaler", "timesteps", "folder")


def _check_profiles(value: dict[str, EmaConfig]) -> dict[str, EmaConfig]:
    bad = [name for name in value if name in _RESERVED or not re.fullmatch(r"[a-z][a-z0-9_-]*", name)]
    if bad:
        raise ValueError(
            f"{', '.join(bad)}: a name starts with a-z and holds a-z, 0-9, _ or -; reserved: {', '.join(_RESERVED)}"
        )
    return value


InitialWeights = Literal["paper", "fan_in"]


class TrainConfig(Section):
    """Optimisation. The global batch is lanes x micro_batch images for any number of workers."""

    steps: int = Field(800_000, ge=1, description="optimiser steps of the whole run")
    lanes: int = Field(
        8,
        ge=1,
        description="parallel data streams that make up a global batch; fixed for a run. ray.workers N must divide "
        "this number; MIN..MAX allows any number of workers up to it",
    )
    micro_batch: int = Field(16, ge=1, description="images of each lane in one step")
    lr: float = Field(2e-4, gt=0, description="learning rate of AdamW after warm-up")
    warmup_steps: int = Field(5000, ge=0, description="steps over which the learning rate rises linearly from 0")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the gradient mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the squared gradient mean")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    grad_clip: float = Field(1.0, gt=0, description="larger global gradient norms are scaled down to this norm")
    flip: bool = Field(False, description="mirror each image left to right with probability 1/2")
    label_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of images trained without label, often 0.1; classifier-free guidance needs it",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of forward and backward passes; weights stay fp32"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: full weights on every worker; fsdp: weights and optimiser split over the workers"
    )
    ema: EmaConfig = Field(EmaConfig(), description="the average named 'ema', by default used for sampling")
    more_ema: Annotated[dict[str, EmaConfig], AfterValidator(_check_profiles)] = Field(
        {}, description="further averages by name, stored in every checkpoint"
    )
    init: InitialWeights = Field(
        "paper", description="initial weights: as Ho et al. 2020, or scaled by fan-in as improved DDPM"
    )
    init_from: str | None = Field(
        None, description="warm start: URI of a run, checkpoint or model folder that gives the initial weights"
    )
    init_weights: str = Field("ema", description="weights taken from init_from: an average by name, or 'raw'")
    seed: int = Field(0, ge=0, description="seed of initial weights, noise, flips, dropout and data order")
    checkpoint_every: int = Field(10_000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints kept")
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints at multiples of this many steps are never deleted; unset: none"
    )
    keep_best: int = Field(
        0, ge=0, description="number of checkpoints with the lowest mean loss since the previous one, kept as well"
    )
    check_every: int = Field(
        1000, ge=1, description="steps between self-checks: equal weights on all workers, averages that move"
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="experiment trackers in addition to Parquet and TensorBoard"
    )
    grid_every: int = Field(10_000, ge=1, description="steps between grids of sample images")
    grid_size: int = Field(64, ge=1, description="images of a grid")
    grid_sampling_steps: int = Field(50, ge=1, description="DDIM steps for the images of a grid")
    compile: bool = Field(False, description="use torch.compile: minutes at the start, faster steps after")

    @property
    def global_batch(self) -> int:
        return self.lanes * self.micro_batch


NOT_IN_DIGEST = ("ray", "storage", "memorisation", "gate", "nightly", "registry", "schedule", "submit")
"""Sections that do not decide a result: where and when a command runs, and what happens to its output."""


class Config(Section):
    """All settings of all verbs: every verb reads its own sections, a recipe may set any."""

    storage: StorageConfig = Field(default_factory=StorageConfig)
    ray: RayConfig = RayConfig()
    ingest: IngestConfig = IngestConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    explore: ExploreConfig = ExploreConfig()
    sweep: SweepConfig = SweepConfig()
    gate: GateConfig = GateConfig()
    nightly: NightlyConfig = NightlyConfig()
    registry: RegistryConfig = RegistryConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    submit: SubmitConfig = SubmitConfig()

    @model_validator(mode="after")
    def _label_dropout_needs_classes(self) -> Self:
        if self.train.label_dropout and self.model.num_classes is None:
            raise ValueError("train.label_dropout needs a class-conditional model: set model.num_classes")
        return self

    def digest(self) -> str:
        """sha256 (hex) of the settings that decide a result: all sections but `NOT_IN_DIGEST`."""
        return digest_of(self.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)))
