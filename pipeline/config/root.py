"""The configuration of every verb: frozen models, each default exactly once.

A `Config` is resolved from layers (`pipeline.config.layers`) and stored beside whatever it made.
`digest` names the settings that decide a result; where and when things run (`ray`, `storage`, `schedule`) is not.
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
    """How to reach an object store. Credentials are never here: environment or instance role only."""

    endpoint: str | None = Field(
        default_factory=_endpoint_from_environment,
        description="S3 endpoint URL; unset means AWS itself (default: $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL)",
    )
    region: str = Field("us-east-1", description="S3 region")
    verify_tls: bool = Field(True, description="check the endpoint's certificate")
    connect_timeout_seconds: float = Field(10.0, gt=0)
    read_timeout_seconds: float = Field(60.0, gt=0, description="a contended create-once may take seconds")
    retries: int = Field(5, ge=0, description="attempts after the first for transient failures")
    outage_seconds: float = Field(600.0, ge=0, description="how long training waits for a store that is away")


def _check_workers(value: str) -> str:
    bounds = value.split("..", 1)
    if not all(bound.isdigit() and int(bound) >= 1 for bound in bounds) or int(bounds[0]) > int(bounds[-1]):
        raise ValueError("must be N or MIN..MAX with 1 <= MIN <= MAX")
    return value


Workers = Annotated[str, BeforeValidator(str), AfterValidator(_check_workers)]


class RayConfig(Section):
    """Where the work runs."""

    address: str = Field("local", description="'local' starts a cluster of its own; 'auto' or an address joins one")
    workers: Workers = Field("1", description="training workers or generation actors: N or MIN..MAX")
    use_gpu: bool = Field(False, description="one GPU a worker or actor")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster (default: what the job needs)"
    )
    max_failures: int = Field(3, ge=-1, description="worker losses tolerated in one invocation; -1 is unlimited")
    resize_seconds: float = Field(60.0, gt=0, description="how often MIN..MAX training looks for more room")

    @property
    def min_workers(self) -> int:
        return int(self.workers.partition("..")[0])

    @property
    def max_workers(self) -> int:
        return int(self.workers.rpartition("..")[2])


class ModelConfig(Section):
    """The U-Net of Ho et al. 2020, appendix B; image size and channels come from the dataset."""

    block_out_channels: tuple[int, ...] = Field((128, 256, 256, 256), min_length=1, description="channels a level")
    layers_per_block: int = Field(2, ge=1)
    attention_levels: tuple[int, ...] = Field((1,), description="levels (0 is full resolution) with self-attention")
    norm_num_groups: int = Field(32, ge=1)
    norm_eps: float = Field(1e-6, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    num_classes: int | None = Field(None, ge=1, description="class-conditional when given")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a slower step")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bad = [c for c in self.block_out_channels if c < 1 or c % self.norm_num_groups]
        if bad:
            raise ValueError(f"block_out_channels {bad} must be multiples of norm_num_groups {self.norm_num_groups}")
        if any(not 0 <= level < len(self.block_out_channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels must lie in 0..{len(self.block_out_channels) - 1}")
        return self


class DiffusionConfig(Section):
    """Forward process, what the network predicts, and what it is trained on."""

    num_timesteps: int = Field(1000, ge=2, description="T")
    schedule: Literal["linear", "cosine", "sigmoid", "quadratic"] = "linear"
    beta_start: float = Field(1e-4, gt=0, lt=1, description="linear and quadratic only")
    beta_end: float = Field(0.02, gt=0, lt=1, description="linear and quadratic only")
    zero_terminal_snr: bool = Field(False, description="rescale the schedule so that alpha_bar_T = 0")
    prediction: Literal["epsilon", "x_0", "v", "mean"] = Field("epsilon", description="what the network outputs")
    variance: Literal["fixed_small", "fixed_large", "learned_range", "learned"] = Field(
        "fixed_large", description="variance of p_theta(x_{t-1}|x_t)"
    )
    objective: Literal["simple", "bound", "hybrid"] = Field(
        "simple", description="plain MSE (Eq. 14), the full variational bound, or their sum (improved DDPM)"
    )
    hybrid_weight: float = Field(1e-3, gt=0, description="weight of the bound in the hybrid objective")
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weighting when given")
    timestep_sampling: Literal["uniform", "importance"] = "uniform"

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
            raise ValueError("at zero terminal SNR x_T holds no signal, so epsilon says nothing: predict 'v' or 'x_0'")
        if self.min_snr_gamma is not None and (self.objective == "bound" or self.prediction == "mean"):
            raise ValueError("min_snr_gamma weights an epsilon, x_0 or v MSE: not the bound, not mean prediction")
        if self.timestep_sampling == "importance" and self.objective == "simple":
            raise ValueError("importance sampling follows the terms of the bound: use objective 'bound' or 'hybrid'")
        return self


class EmaConfig(Section):
    """One exponential moving average of the weights: a fixed decay, a half-life in images, or a power function."""

    decay: float = Field(0.9999, ge=0, lt=1)
    warmup: bool = Field(
        True, description="decay at step n is at most (1 + n) / (10 + n), a half-life at most 0.05 of the images seen"
    )
    half_life_images: float | None = Field(
        None, gt=0, description="instead of decay: images after which a weight counts half (Karras et al. 2022)"
    )
    relative_width: float | None = Field(
        None, gt=0, lt=0.28, description="instead of decay: sigma_rel of the power function (Karras et al. 2024)"
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
        raise ValueError(f"{', '.join(bad)}: a name has a-z, 0-9, _ or -, and is none of {', '.join(_RESERVED)}")
    return value


InitialWeights = Literal["paper", "fan_in"]


class TrainConfig(Section):
    """Optimisation. The global batch is lanes x micro_batch images, whatever the number of workers."""

    steps: int = Field(800_000, ge=1)
    lanes: int = Field(8, ge=1, description="fixed for a run; the number of workers must divide it")
    micro_batch: int = Field(16, ge=1, description="images a lane a step")
    lr: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(5000, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0, description="largest global gradient norm")
    flip: bool = Field(False, description="random horizontal flips")
    label_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of images trained without their label: what guidance needs, often 0.1"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of forward and backward; weights are fp32")
    sharding: Literal["ddp", "fsdp"] = Field("ddp", description="fsdp splits weights and optimiser over the workers")
    ema: EmaConfig = Field(EmaConfig(), description="the average named 'ema', what samples are drawn from")
    more_ema: Annotated[dict[str, EmaConfig], AfterValidator(_check_profiles)] = Field(
        {}, description="further averages by name, each in every checkpoint"
    )
    init: InitialWeights = Field("paper", description="first weights: Ho et al. 2020, or by fan-in as improved DDPM")
    init_from: str | None = Field(None, description="warm start: weights of another run, checkpoint or model folder")
    init_weights: str = Field("ema", description="which weights of init_from: an average by name, or 'raw'")
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(10_000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="newest checkpoints kept")
    keep_every: int | None = Field(None, ge=1, description="checkpoints at multiples of this many steps stay for good")
    keep_best: int = Field(0, ge=0, description="checkpoints of lowest mean loss since the one before, kept as well")
    check_every: int = Field(1000, ge=1, description="steps between self-checks: replicas equal, averages moving")
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field((), description="beside Parquet and TensorBoard")
    grid_every: int = Field(10_000, ge=1, description="steps between sample grids")
    grid_size: int = Field(64, ge=1, description="images a grid")
    grid_sampling_steps: int = Field(50, ge=1, description="DDIM steps of a grid")
    compile: bool = Field(False, description="torch.compile: minutes at the start; pays for long runs")

    @property
    def global_batch(self) -> int:
        return self.lanes * self.micro_batch


NOT_IN_DIGEST = ("ray", "storage", "memorisation", "gate", "nightly", "registry", "schedule", "submit")
"""Sections that decide no result: where and when things run, and what becomes of them."""


class Config(Section):
    """A complete named run: every verb reads its sections, a recipe may set them all."""

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
    def _labels_are_there_to_drop(self) -> Self:
        if self.train.label_dropout and self.model.num_classes is None:
            raise ValueError("train.label_dropout drops labels of a class-conditional model: set model.num_classes")
        return self

    def digest(self) -> str:
        """sha256 (hex) of the settings that decide a result: not where it runs, nor what becomes of it."""
        return digest_of(self.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)))
