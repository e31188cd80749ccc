"""Settings of training and of the averaged weights (EMA)."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import Section


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
