"""Settings and a model -> the plan of a samples folder, or a ConfigError."""

import math
from dataclasses import dataclass

from pipeline.config.generation import BALANCED, GenerateConfig, LabelMix, label_mix
from pipeline.errors import ConfigError
from pipeline.generation.commit import PLAN, read_plan
from pipeline.generation.generator import plan_sampler
from pipeline.generation.manifest import RequestTable, SamplePlan
from pipeline.generation.request_table import RequestSource, load_requests, read_source, request_file
from pipeline.generation.requests import RequestRules, Requests, normalise_requests
from pipeline.generation.sample_plan import ShardLayout
from pipeline.model_store.load_model import StoredModel
from pipeline.storage.store import Store

_UNCHANGED = {"shard_size", "seed", "sampler", "eta", "clip", "compile", "guidance", "format"}
"""Settings that the plan takes as they are."""


@dataclass(frozen=True)
class PlannedFolder:
    """A plan before it is stored, and its requests. request_file: content of plan.requests.file, empty if stored."""

    plan: SamplePlan
    requests: Requests | None = None
    request_file: bytes = b""


def plan_folder(config: GenerateConfig, folder: Store, model: StoredModel, requests: str | None) -> PlannedFolder:
    """The plan of the settings. requests: URI of a request table; by default the table already stored in the folder.

    Raises ConfigError as make_plan does, DataError that lists every invalid request.
    """
    there = read_plan(folder) if folder.exists(PLAN) else None
    kept = there.requests if there is not None else None
    source = None if requests is None else read_source(requests, folder.config)
    _check(config, kept is not None or source is not None)
    if there is not None and kept is not None and (source is None or source.sha256 == kept.source_sha256):
        return PlannedFolder(make_plan(config, model, kept, there.num_samples), load_requests(folder, there))
    return PlannedFolder(make_plan(config, model)) if source is None else _requested(config, model, source)


def _requested(config: GenerateConfig, model: StoredModel, source: RequestSource) -> PlannedFolder:
    rules = RequestRules(
        num_classes=model.model.num_classes,
        num_timesteps=model.diffusion.num_timesteps,
        guidance_error=guidance_error(model),
        steps=config.steps or model.diffusion.num_timesteps,
        **config.model_dump(include={"sampler", "seed", "guidance"}),
    )
    requests = Requests(normalise_requests(source.rows(), source.unit, rules))
    entry, data = request_file(requests.table)
    shards = ShardLayout(requests.bounds, config.shard_size).num_shards
    pin = RequestTable(source_sha256=source.sha256, rows=requests.table.num_rows, shards=shards, file=entry)
    return PlannedFolder(make_plan(config, model, pin, requests.num_samples), requests, data)


def _check(config: GenerateConfig, requested: bool) -> None:
    """Reject settings without effect. With a request table each row has its own sampler and guidance."""
    if requested:
        if config.labels != BALANCED:
            raise ConfigError(f"generate.labels {config.labels!r}: the request table has the labels")
        return
    if config.sampler != "ddim" and config.eta != 0:
        raise ConfigError(f"generate.eta {config.eta} belongs to sampler 'ddim', not {config.sampler!r}")
    if config.sampler != "ddpm" and config.variance is not None:
        raise ConfigError(f"generate.variance {config.variance!r} belongs to sampler 'ddpm', not {config.sampler!r}")
    if config.guidance is None and config.guidance_interval is not None:
        raise ConfigError("generate.guidance_interval limits generate.guidance, which is off")


def make_plan(
    config: GenerateConfig, model: StoredModel, requests: RequestTable | None = None, num_samples: int | None = None
) -> SamplePlan:
    """The plan of the settings. num_samples: of a request table; default config.num_samples.

    Raises ConfigError for settings that the sampler or the model does not support.
    """
    _check(config, requests is not None)
    if config.guidance is not None and (reason := guidance_error(model)):
        raise ConfigError(f"generate.guidance {config.guidance:g}: {reason}")
    plan = SamplePlan(
        **config.model_dump(include=_UNCHANGED),
        num_samples=config.num_samples if num_samples is None else num_samples,
        batch_size=min(config.batch_size, config.shard_size),
        model_uri=model.uri,
        model_digest=model.digest,
        weights=model.weights,
        steps=config.steps or model.diffusion.num_timesteps,
        variance=config.variance or model.diffusion.variance,
        image_size=model.image_size,
        channels=model.channels,
        num_classes=model.model.num_classes,
        null_label=config.null_label,
        diffusion=model.diffusion.model_dump(mode="json"),
        guidance_interval=_interval(config.guidance_interval, model.diffusion.num_timesteps),
        labels=_mix(config, model),
        requests=requests,
    )
    plan_sampler(plan)
    return plan


def _mix(config: GenerateConfig, model: StoredModel) -> LabelMix | None:
    """Raises ConfigError for a label outside the model's classes."""
    mix, classes = label_mix(config.labels), model.model.num_classes or 0
    if mix is not None and mix[-1][0] >= classes:
        has = f"the classes of the model are 0..{classes - 1}" if classes else "the model has no classes"
        raise ConfigError(f"generate.labels {config.labels!r}: {has}")
    return mix


def guidance_error(model: StoredModel) -> str | None:
    """Why a model cannot be guided, or None when it can."""
    if model.model.num_classes is None:
        return "the model has no classes to guide towards"
    if not model.model.null_class:
        return (
            f"{model.uri} names no row of its class embedding for 'no label', which guidance requires; if it was "
            "trained with one, set generate.null_label to its number"
        )
    if not model.label_dropout and model.null_row is None:
        return (
            f"{model.uri} was trained without label dropout, so it cannot predict without a label, as guidance "
            "requires; train with train.label_dropout, such as 0.1"
        )
    return None


def _interval(given: tuple[float, float] | None, num_timesteps: int) -> tuple[int, int] | None:
    """Timestep indices, both included. `given` holds shares of 0..T-1 when its upper end is at most 1, else indices.

    Raises ConfigError when the interval contains no timestep.
    """
    if given is None:
        return None
    scale = num_timesteps - 1 if given[1] <= 1 else 1
    low, high = math.ceil(given[0] * scale - 1e-9), min(math.floor(given[1] * scale + 1e-9), num_timesteps - 1)
    if low > high:
        raise ConfigError(
            f"generate.guidance_interval {given[0]:g},{given[1]:g} contains no timestep of 0..{num_timesteps - 1}"
        )
    return low, high
