"""Settings of bulk sampling: what decides the samples, and how they are packed."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, model_validator

from pipeline.config.base import Section

__all__ = [
    "BALANCED",
    "SAMPLERS",
    "ExploreConfig",
    "GenerateConfig",
    "LabelMix",
    "SamplerName",
    "SweepConfig",
    "label_mix",
]

SamplerName = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun"]
SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun")
BALANCED = "balanced"
LabelMix = tuple[tuple[int, float], ...]
"""(label, weight), labels ascending; shares are weight over the sum of weights."""


def label_mix(text: str) -> LabelMix | None:
    """'0:0.5,3:0.5' -> ((0, 0.5), (3, 0.5)); None for 'balanced'. Raises ValueError."""
    if text == BALANCED:
        return None
    mix: dict[int, float] = {}
    for part in text.split(","):
        label, colon, weight = part.strip().partition(":")
        try:
            number, share = int(label), float(weight)
        except ValueError:
            number, share = -1, -1.0
        if not colon or number < 0 or not (share > 0 and math.isfinite(share)):
            raise ValueError(f"must be '{BALANCED}' or LABEL:WEIGHT,... with weights above 0, such as 0:0.5,3:0.5")
        if number in mix:
            raise ValueError(f"names label {number} twice")
        mix[number] = share
    return tuple(sorted(mix.items()))


def _check_labels(value: str) -> str:
    label_mix(value)
    return value


def _no_integer(value: Any) -> Any:
    """1 and 0 would be read as a quantile or as a switch by chance."""
    if value in ("0", "1") or (isinstance(value, int) and not isinstance(value, bool)):
        raise ValueError("must be true, false or a quantile such as 0.995")
    return value


class GenerateConfig(Section):
    """Bulk sampling."""

    num_samples: int = Field(64, ge=1, lt=2**63)
    seed: int = Field(0, ge=0, lt=2**63)
    sampler: SamplerName = "ddpm"
    steps: int | None = Field(None, ge=1, description="sampling steps; unset means every step of the process")
    eta: float = Field(0.0, ge=0, le=1, description="DDIM stochasticity; 1 has the variance of DDPM fixed_small")
    variance: Literal["fixed_small", "fixed_large"] | None = Field(None, description="DDPM only; unset: as trained")
    clip: Annotated[bool | Annotated[float, Field(gt=0, le=1)], BeforeValidator(_no_integer)] = Field(
        True, description="clip predicted x_0 to [-1, 1]; a number is the quantile of dynamic thresholding"
    )
    guidance: FiniteFloat | None = Field(
        None, ge=0, description="classifier-free guidance: 1 is the conditional model, more exaggerates; unset: off"
    )
    guidance_interval: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None,
        description="LOW,HIGH: guide there only; timestep indices, or shares of the process when HIGH is at most 1",
    )
    labels: Annotated[str, AfterValidator(_check_labels)] = Field(
        BALANCED, description="'balanced' (every class in turn) or LABEL:WEIGHT,... such as 0:0.5,3:0.5"
    )
    weights: str = Field("ema", description="'ema', or 'raw' for the optimiser's own weights")
    batch_size: int = Field(64, ge=1, description="images a forward pass; pinned in the plan")
    compile: bool = Field(False, description="torch.compile: minutes at the start; pays for large jobs")
    shard_size: int = Field(1024, ge=1, description="images an output shard, the unit of commit")
    format: Literal["parquet", "webdataset"] = Field("parquet", description="of the shards; webdataset is tar")
    price_per_hour: FiniteFloat | None = Field(None, ge=0, description="of one actor, any currency: for the forecast")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low <= high:
                raise ValueError("guidance_interval must be LOW,HIGH with 0 <= LOW <= HIGH")
        return self


def _split(value: Any) -> Any:
    """'0,1' as a short flag gives it."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ExploreConfig(Section):
    """Sheets that show a model at work; how it samples is said by `generate`."""

    mode: Literal["progressive", "interpolate", "shared", "rate-distortion", "frechet"] = "progressive"
    ids: Annotated[tuple[int, ...], BeforeValidator(_split)] = Field(
        (0, 1), min_length=1, description="sample ids; interpolate takes two, shared one"
    )
    rows: int = Field(4, ge=1, description="timesteps to begin at, from x_T downwards; progressive: a row a sample")
    columns: int = Field(10, ge=2)
    num_images: int = Field(64, ge=2, description="rate-distortion: held-out images; frechet: samples")

    @model_validator(mode="after")
    def _ids_are_samples(self) -> Self:
        if min(self.ids) < 0:
            raise ValueError("ids are not negative")
        needed = {"interpolate": 2, "shared": 1}.get(self.mode)
        if needed is not None and len(self.ids) != needed:
            raise ValueError(f"mode {self.mode!r} takes {needed} of ids, {len(self.ids)} are given")
        return self


class SweepConfig(Section):
    """A grid of generation jobs: every sampler with every number of steps and every set of weights.

    Which names there are is a matter of the model: `stages.sweep_points` refuses, all that is wrong in one message.
    """

    samplers: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        ("ddim", "dpm++2m"), min_length=1, description=f"of {', '.join(SAMPLERS)}"
    )
    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)] = Field(
        (10, 20, 50), min_length=1, description="sampling steps"
    )
    ema: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        ("ema",), min_length=1, description="averages of the run by name, or 'raw'"
    )
