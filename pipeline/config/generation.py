"""Settings of `ddpm generate`, `ddpm explore` and `ddpm sweep`."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, model_validator

from pipeline.config.base import ExtendedSection, Section

SamplerName = Literal["ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun"]
SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim", "dpm++2m", "dpm++2m-sde", "heun")
BALANCED = "balanced"
LabelMix = tuple[tuple[int, float], ...]
"""(label, weight) pairs by ascending label; a label's share of the samples is its weight over the sum of weights."""


def label_mix(text: str) -> LabelMix | None:
    """Parse generate.labels: '0:0.5,3:0.5' -> ((0, 0.5), (3, 0.5)); 'balanced' -> None. Raises ValueError."""
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
    """Refuse 1 and 0 for `clip`: each could mean a switch or a quantile."""
    if value in ("0", "1") or (isinstance(value, int) and not isinstance(value, bool)):
        raise ValueError("must be true, false or a quantile such as 0.995")
    return value


class GenerateConfig(ExtendedSection):
    """Sampling a number of images, and the shards that store them."""

    added: ClassVar[frozenset[str]] = frozenset({"null_label"})

    num_samples: int = Field(64, ge=1, lt=2**63, description="number of samples in total")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all noise; equal seeds and settings give equal samples")
    sampler: SamplerName = Field("ddpm", description="sampling algorithm")
    steps: int | None = Field(None, ge=1, description="sampling steps; unset: all T timesteps of the process")
    eta: float = Field(
        0.0, ge=0, le=1, description="DDIM: share of fresh noise, 0 is deterministic, 1 is as noisy as DDPM fixed_small"
    )
    variance: Literal["fixed_small", "fixed_large"] | None = Field(
        None, description="sampler ddpm: variance of each step; unset: the variance that the model was trained with"
    )
    clip: Annotated[bool | Annotated[float, Field(gt=0, le=1)], BeforeValidator(_no_integer)] = Field(
        True, description="clip the predicted x_0 to [-1, 1]; a number in (0, 1]: quantile of dynamic thresholding"
    )
    guidance: FiniteFloat | None = Field(
        None,
        ge=0,
        description="scale of classifier-free guidance: 0 ignores the label, 1 is the plain conditional model, above 1 "
        "strengthens the label; unset: off",
    )
    guidance_interval: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None,
        description="LOW,HIGH: timestep indices with guidance, or shares of the process when HIGH is at most 1; unset: "
        "all",
    )
    labels: Annotated[str, AfterValidator(_check_labels)] = Field(
        BALANCED, description="classes of the samples: 'balanced', or LABEL:WEIGHT,... such as 0:0.5,3:0.5"
    )
    weights: str = Field(
        "ema",
        description="weights to sample with: an average by name, or 'raw' for those of the optimiser; of a diffusers "
        "folder a variant, such as fp16, if it has one of this name",
    )
    null_label: int | None = Field(
        None,
        ge=0,
        description="row of the class embedding that stands for no label, for guidance with a diffusers folder that "
        "does not name one; the other rows, in order, are the classes 0, 1, ...; unset: every row is a class",
    )
    batch_size: int = Field(64, ge=1, description="images in one forward pass; part of the plan, as it affects bits")
    compile: bool = Field(False, description="use torch.compile: minutes at the start, faster steps after")
    shard_size: int = Field(1024, ge=1, description="images of a shard; a shard is committed as a whole")
    format: Literal["parquet", "webdataset"] = Field(
        "parquet", description="file format of the shards; webdataset files are tar archives"
    )
    price_per_hour: FiniteFloat | None = Field(
        None, ge=0, description="price of one actor for an hour, in any currency, for the cost forecast"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low <= high:
                raise ValueError("guidance_interval must be LOW,HIGH with 0 <= LOW <= HIGH")
        return self


def _split(value: Any) -> Any:
    """Split the text of a flag such as '0,1' at its commas."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ExploreConfig(Section):
    """Image sheets that show how a model samples; the `generate` section gives the sampler settings."""

    mode: Literal["progressive", "interpolate", "shared", "rate-distortion", "frechet"] = Field(
        "progressive",
        description="sheet to make. progressive: predicted x_0 during sampling; interpolate: between two samples; "
        "shared: samples that share their first steps; rate-distortion: rate and distortion over t on held-out "
        "images; frechet: Frechet distance of the predicted x_0 during sampling",
    )
    ids: Annotated[tuple[int, ...], BeforeValidator(_split)] = Field(
        (0, 1), min_length=1, description="sample ids; mode interpolate takes two, shared one"
    )
    rows: int = Field(
        4, ge=1, description="interpolate, shared: number of start timesteps; rate-distortion, frechet: images shown"
    )
    columns: int = Field(10, ge=2, description="number of pictures in a row")
    num_images: int = Field(
        64, ge=2, description="rate-distortion: number of held-out images; frechet: of samples and of held-out images"
    )

    @model_validator(mode="after")
    def _ids_are_samples(self) -> Self:
        if min(self.ids) < 0:
            raise ValueError("ids must not be negative")
        needed = {"interpolate": 2, "shared": 1}.get(self.mode)
        if needed is not None and len(self.ids) != needed:
            raise ValueError(f"the number of ids must be {needed} in mode {self.mode!r} (got {len(self.ids)})")
        return self


class SweepConfig(Section):
    """A grid of samples folders: every sampler with every number of steps and every set of weights.

    `pipeline.analysis.sweep_grid` checks the names against the model, and reports all wrong ones in one message.
    """

    samplers: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        ("ddim", "dpm++2m"), min_length=1, description=f"samplers to compare, of {', '.join(SAMPLERS)}"
    )
    steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)] = Field(
        (10, 20, 50), min_length=1, description="numbers of sampling steps to compare"
    )
    ema: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        ("ema",), min_length=1, description="weights to compare: averages of the run by name, or 'raw'"
    )
